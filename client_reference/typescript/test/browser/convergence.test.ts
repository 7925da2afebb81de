/** Two devices of one user against the real service, in a real browser's IndexedDB. */

import fc from "fast-check";
import { expect, inject, test } from "vitest";
import { type Device, device, somebody } from "./devices.ts";

const row = fc.nat({ max: 2 });
const text = fc.constantFrom("a", "b", "c");
const key = fc.constantFrom("10m", "a/b", "~");

/** What a device may do, with rows of these keys. */
type Step = (db: Device, keys: readonly string[]) => Promise<unknown>;

/** The calendar of a row. */
const at = (db: Device, key = "") => db.user_calendars.where({ id: key });

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.tuple(row, text, text).map(
    ([of, name, color]): Step =>
      (db, keys) => {
        return db.user_calendars.put({ id: keys[of] ?? "", name, color });
      },
  ),
  fc.tuple(row, text).map(
    ([of, name]): Step =>
      (db, keys) =>
        at(db, keys[of]).modify({ name }),
  ),
  fc.tuple(row, text).map(
    ([of, color]): Step =>
      (db, keys) =>
        at(db, keys[of]).modify({ color }),
  ),
  fc.tuple(row, key).map(
    ([of, name]): Step =>
      (db, keys) => {
        return at(db, keys[of]).modify((calendar) => {
          calendar.reminders = { ...calendar.reminders, [name]: true };
        });
      },
  ),
  fc.tuple(row, key).map(
    ([of, name]): Step =>
      (db, keys) => {
        return at(db, keys[of]).modify((calendar) => {
          delete calendar.reminders?.[name];
        });
      },
  ),
  row.map(
    (of): Step =>
      (db, keys) =>
        at(db, keys[of]).delete(),
  ),
  fc.tuple(row, row, text).map(
    ([one, other, name]): Step =>
      (db, keys) => {
        return db.transaction("rw", db.user_calendars, async () => {
          await db.user_calendars.put({ id: keys[one] ?? "", name });
          await at(db, keys[other]).modify({ name });
        });
      },
  ),
  fc.constant<Step>((db) => db.synchronise()),
);

test("whatever two devices do and whenever they synchronise, they end with the service's rows (I7, I25, I32, I34)", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(fc.nat({ max: 1 }), step), { minLength: 5, maxLength: 30 }), async (steps) => {
      const user = somebody();
      const keys = [0, 1, 2].map(() => crypto.randomUUID());
      const devices = [device(user, { start: false }), device(user, { start: false })];
      try {
        for (const [which, act] of steps) await act(devices[which] as Device, keys);
        for (const db of [...devices, ...devices]) await db.synchronise();
        const [one, two] = await Promise.all(devices.map((db) => db.user_calendars.orderBy("id").toArray()));
        expect(one).toEqual(two);
        for (const db of devices) {
          expect(await db.outgoing()).toEqual([]);
          expect(await db.rejected.list()).toEqual([]);
          expect(await db.table("sync_outbox").count()).toBe(0);
          const [proof] = Object.values(await db.verify());
          expect(proof?.computed).toBe(proof?.told);
        }
      } finally {
        for (const db of devices) await db.delete();
      }
    }),
    { numRuns: inject("runs") },
  );
});

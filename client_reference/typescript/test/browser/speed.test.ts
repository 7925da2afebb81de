/**
 * How fast the client is in a real browser, beside plain Dexie in the same run. The bounds are far above what is
 * measured on a quiet machine (see the README), so that only a real fault is found by them; the figures are printed.
 */

import Dexie, { liveQuery } from "dexie";
import { expect, inject, test } from "vitest";
import type { Mutation } from "../../src/generated/messages.ts";
import { reading } from "../../src/protocol/clock.ts";
import { device, somebody, until } from "./devices.ts";
import { tokenFor } from "./tokens.ts";

const ROWS = 20_000;
const row = (at: number) => ({ name: `Category ${at}`, color: "blue", position: at, archived: false });

async function mean(times: number, work: (at: number) => Promise<unknown>): Promise<number> {
  const begun = performance.now();
  for (let at = 0; at < times; at++) await work(at);
  return (performance.now() - begun) / times;
}

function quantile(times: readonly number[], part: number): number {
  return [...times].sort((one, two) => one - two)[Math.floor(times.length * part)] ?? Number.NaN;
}

test("a local write with its outbox costs about twice a plain put of Dexie's", async () => {
  const plain = new Dexie(`plain-${somebody()}`, { chromeTransactionDurability: "strict" });
  plain.version(1).stores({ user_categories: "id, user_id, name" });
  const stamps = { user_id: "u", created_at: "2026-11-30T00:00:00.000000Z", updated_at: "2026-11-30T00:00:00.000000Z" };
  const db = device(somebody(), { start: false });
  await db.open();
  const rounds: [number, number][] = [];
  for (let round = 0; round < 6; round++) {
    const put = await mean(200, (at) =>
      plain.table("user_categories").put({ id: crypto.randomUUID(), ...row(at), ...stamps }),
    );
    rounds.push([put, await mean(200, (at) => db.user_categories.put(row(at)))]);
  }
  // The first round warms up.
  const [put = 0, written = 0] = [0, 1].map((at) =>
    quantile(
      rounds.slice(1).map((round) => round[at] ?? 0),
      0.5,
    ),
  );
  console.log(
    `local write: ${written.toFixed(2)} ms, plain put: ${put.toFixed(2)} ms, ratio ${(written / put).toFixed(2)}`,
  );
  expect(written / put).toBeLessThan(5);
  await db.delete();
  await plain.delete();
});

test("the first synchronisation of 20,000 rows takes seconds, and leaves the page its frames (I32)", async () => {
  const user = somebody();
  await fill(user);
  const db = device(user, { start: false });
  await db.open();
  const shown: number[] = [];
  const watching = liveQuery(() => db.user_categories.count()).subscribe((count) => shown.push(count));
  const frames = framesUntil();
  const begun = performance.now();
  db.resume();
  await until(db, ({ connection }) => connection === "live");
  const took = performance.now() - begun;
  console.log(
    `first synchronisation of ${ROWS} rows: ${took.toFixed(0)} ms, longest frame ${frames.end().toFixed(0)} ms`,
  );
  watching.unsubscribe();
  expect(await db.user_categories.count()).toBe(ROWS);
  const [proof] = Object.values(await db.verify());
  expect(proof?.computed).toBe(proof?.told);
  // A query that is open meanwhile sees the rows come.
  expect(shown.length).toBeGreaterThan(5);
  expect(took).toBeLessThan(30_000);
  await db.delete();
});

test("what another device writes is soon on the screen", async () => {
  const user = somebody();
  const [one, two] = [device(user), device(user)];
  for (const db of [one, two]) await until(db, ({ connection }) => connection === "live");
  const times: number[] = [];
  for (let at = 0; at < 100; at++) {
    const begun = performance.now();
    const drawn = new Promise<void>((resolve) => {
      const watching = liveQuery(() => two.user_categories.where({ name: `n${at}` }).count()).subscribe((count) => {
        if (count === 0) return;
        queueMicrotask(() => watching.unsubscribe());
        resolve();
      });
    });
    await one.user_categories.add({ name: `n${at}` });
    await drawn;
    times.push(performance.now() - begun);
  }
  console.log(
    `write to another's redrawn query: p50 ${quantile(times, 0.5).toFixed(0)} ms, p99 ${quantile(times, 0.99).toFixed(0)} ms`,
  );
  expect(quantile(times, 0.5)).toBeLessThan(1_000);
  for (const db of [one, two]) await db.delete();
});

/** Put the rows into the service, without a client's database. */
async function fill(user: string): Promise<void> {
  const { url, secret } = inject("service");
  const headers = { Authorization: `Bearer ${await tokenFor(user, secret)}`, "Content-Type": "application/json" };
  for (let from = 0; from < ROWS; from += 1_000) {
    const mutations = Array.from(
      { length: 1_000 },
      (_, at): Mutation => ({
        seq: at + 1,
        op: "put",
        entity: "user_categories",
        row: crypto.randomUUID(),
        at: reading(Date.now(), at, "5f1c9a7e3d2b4a68"),
        fields: row(from + at),
      }),
    );
    const body = JSON.stringify({ client: crypto.randomUUID(), schema: 1, mutations });
    const answer = await fetch(`${url}/sync/push`, { method: "POST", headers, body });
    expect(answer.status).toBe(200);
  }
}

/** Watch the page's frames; `end` says how long the longest took (ms). */
function framesUntil(): { end(): number } {
  let longest = 0;
  let last = performance.now();
  let running = true;
  const frame = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (running) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  return {
    end: () => {
      running = false;
      return longest;
    },
  };
}

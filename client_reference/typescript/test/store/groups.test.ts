/** What one transaction of the app's means to the service (SPEC 4), and the readings of its writes (SPEC 2). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { MAX_MUTATIONS } from "../../src/generated/codes.ts";
import { millisOf, reading } from "../../src/protocol/clock.ts";
import { id, Local, note } from "../support/local.ts";
import { until } from "../support/time.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

async function groups(): Promise<(string | null | undefined)[]> {
  return (await local.records()).map(({ group }) => group);
}

describe("groups", () => {
  test("the writes of one explicit transaction are one group, over all its tables", async () => {
    await local.db.transaction("rw", local.notes, local.tasks, async () => {
      await local.notes.add({ title: "a" });
      await local.tasks.add({ workspace_id: "1", title: "b" });
      await local.notes.clear();
    });
    const [first, ...others] = await groups();
    expect(first).toMatch(/^[0-9a-f-]{36}$/);
    expect(others).toEqual([first, first]);
    expect(local.commits).toBe(1);
  });

  test("two transactions are two groups", async () => {
    for (const title of ["a", "b"]) {
      await local.db.transaction("rw", local.notes, () => local.notes.add({ title }));
    }
    const [one, two] = await groups();
    expect(one).not.toBe(two);
  });

  test("a nested transaction belongs to the group of the one around it", async () => {
    await local.db.transaction("rw", local.notes, async () => {
      await local.notes.add({ title: "a" });
      await local.db.transaction("rw", local.notes, () => local.notes.add({ title: "b" }));
    });
    expect(new Set(await groups()).size).toBe(1);
  });

  test("a bulk or a modify outside a transaction is no group: each row stands for itself", async () => {
    await local.notes.bulkAdd([{ title: "a" }, { title: "b" }]);
    await local.notes.toCollection().modify({ done: true });
    expect(await groups()).toEqual([null, null, null, null]);
  });

  test("an abort leaves neither rows nor mutations", async () => {
    const failed = local.db.transaction("rw", local.notes, async () => {
      await local.notes.add({ title: "a" });
      throw new Error("the app changed its mind");
    });
    await expect(failed).rejects.toThrow("changed its mind");
    expect(await local.notes.count()).toBe(0);
    expect(await local.records()).toEqual([]);
    expect(local.commits).toBe(0);
  });

  test("an abort of a transaction leaves the server's state of its rows where it was", async () => {
    await local.apply("user:ann", [note(id(1), 1)]);
    const failed = local.db.transaction("rw", local.notes, async (trans) => {
      await local.notes.update(id(1), { title: "b" });
      trans.abort();
    });
    await expect(failed).rejects.toThrow();
    expect(await local.bases()).toEqual([{ name: `user:ann/notes/${id(1)}`, version: 1 }]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "t" });
  });

  test("a group of more writes than one push holds is refused, and nothing is written", async () => {
    const rows = Array.from({ length: MAX_MUTATIONS }, (_, at) => ({ id: id(at), title: "a" }));
    const failed = local.db.transaction("rw", local.notes, async () => {
      await local.notes.bulkAdd(rows);
      await local.notes.add({ title: "one too many" });
    });
    await expect(failed).rejects.toMatchObject({ code: "group_too_large" });
    expect(await local.notes.count()).toBe(0);
    expect(await local.records()).toEqual([]);
  });

  test("a group of more bytes than one push holds is refused", async () => {
    const body = "ä".repeat(120 << 10);
    const failed = local.db.transaction("rw", local.notes, () =>
      local.notes.bulkAdd([1, 2, 3, 4, 5].map((at) => ({ id: id(at), title: "a", body }))),
    );
    await expect(failed).rejects.toMatchObject({ code: "group_too_large" });
    expect(await local.notes.count()).toBe(0);
  });

  test("exactly as many writes as one push holds are one group", async () => {
    const rows = Array.from({ length: MAX_MUTATIONS }, (_, at) => ({ id: id(at), title: "a" }));
    await local.db.transaction("rw", local.notes, () => local.notes.bulkAdd(rows));
    expect(await local.handOver(MAX_MUTATIONS)).toHaveLength(MAX_MUTATIONS);
  });

  test("split lets the writes of a transaction be sent in as many pushes as they need", async () => {
    const rows = Array.from({ length: MAX_MUTATIONS + 1 }, (_, at) => ({ id: id(at), title: "a" }));
    await local.db.transaction("rw", local.notes, async () => {
      local.capture.divide();
      await local.notes.bulkAdd(rows);
    });
    expect(new Set(await groups())).toEqual(new Set([null]));
    expect(await local.notes.count()).toBe(MAX_MUTATIONS + 1);
  });

  test("split outside a transaction is refused", () => {
    expect(() => local.capture.divide()).toThrow(/transaction/);
  });

  test("other work may be awaited in a transaction as far as Dexie allows it", async () => {
    await local.db.transaction("rw", local.notes, async () => {
      const key = await local.notes.add({ title: "a" });
      await Promise.resolve();
      await local.notes.update(key, { title: (await local.notes.get(key))?.body ?? "" });
    });
    expect((await local.said()).map(([op, , fields]) => [op, fields?.title])).toEqual([
      ["put", "a"],
      ["patch", ""],
    ]);
  });
});

describe("readings", () => {
  const readings = async (of: Local) => (await of.records()).map(({ at }) => at);
  const isRising = (texts: string[]) => texts.every((text, at) => at === 0 || text > (texts[at - 1] ?? ""));

  test("readings rise with every write, within a millisecond and when the wall clock goes back (I3)", async () => {
    await local.notes.add({ title: "a" });
    await local.notes.add({ title: "b" });
    local.time.now -= 60_000;
    await local.notes.add({ title: "c" });
    await local.notes.bulkAdd([{ title: "d" }, { title: "e" }]);
    const all = await readings(local);
    expect(all).toHaveLength(5);
    expect(isRising(all)).toBe(true);
  });

  test("two tabs of one device never issue a reading at or below one of the other's (I3)", async () => {
    const other = await Local.open({ device: local.device, time: local.time });
    for (const tab of [local, other, other, local, other]) await tab.notes.add({ title: "a" });
    const all = await readings(local);
    expect(all).toHaveLength(5);
    expect(isRising(all)).toBe(true);
    expect(new Set(all.map((at) => at.slice(18))).size).toBe(2);
    other.close();
  });

  test("a reopened store goes on above what it issued, even after those have left the outbox (I3)", async () => {
    await local.notes.add({ title: "a" });
    const [before = ""] = await readings(local);
    await local.answer({}, 0);
    expect(await readings(local)).toEqual([]);
    local.time.now -= 3_600_000;
    const again = await Local.open({ device: local.device, time: local.time });
    await again.notes.add({ title: "b" });
    expect((await readings(again))[0]?.slice(0, 17) ?? "").toSatisfy((text: string) => text > before.slice(0, 17));
    again.close();
  });

  test("what was applied, awaited and then reached is issued no second time either (I3)", async () => {
    local.time.pass(10_000);
    await local.notes.add({ id: id(1), title: "a" });
    const [before = ""] = await readings(local);
    local.time.now -= 3_600_000;
    await local.answer({}, 5);
    // Somebody else's row has won: nothing of it tells of this reading.
    await local.apply("user:ann", [note(id(1), 5)]);
    expect(await readings(local)).toEqual([]);
    await local.notes.update(id(1), { title: "b" });
    expect(((await readings(local))[0] ?? "") > before).toBe(true);
  });

  test("a write carries a later reading than everything that was received before it (I4)", async () => {
    const far = reading(local.time.now + 50_000, 7, "e".repeat(16));
    await local.store.write([], (inside) => inside.observe(far));
    await local.notes.add({ title: "a" });
    expect((await readings(local))[0]?.localeCompare(far)).toBe(1);
  });

  test("a write carries a later reading than the rows seen, even if the answer's clock never came (I4)", async () => {
    await local.apply("user:ann", [note(id(1), 1, {}, "2027-01-15T08:00:30.000000Z")]);
    await local.notes.update(id(1), { title: "b" });
    expect(millisOf((await readings(local))[0] ?? "")).toBeGreaterThanOrEqual(Date.parse("2027-01-15T08:00:30Z"));
    expect((await readings(local))[0]?.slice(0, 17)).not.toBe(
      reading(Date.parse("2027-01-15T08:00:30Z"), 0, "").slice(0, 17),
    );
  });

  test("the measured offset corrects the readings, and not what is kept of the device's own time", async () => {
    await local.outbox.correct(null, 5_000, local.time.now + 5_000);
    await local.notes.add({ title: "a" });
    expect(await local.records()).toMatchObject([{ wall: local.time.now }]);
    expect(millisOf((await readings(local))[0] ?? "")).toBe(local.time.now + 5_000);
  });

  test("writes begun at the same time in two tabs both stand, each with its own reading (I25)", async () => {
    const other = await Local.open({ device: local.device, time: local.time });
    await Promise.all([local.notes.add({ title: "a" }), other.notes.add({ title: "b" })]);
    await until(async () => (await local.records()).length === 2);
    expect(isRising(await readings(local))).toBe(true);
    other.close();
  });
});

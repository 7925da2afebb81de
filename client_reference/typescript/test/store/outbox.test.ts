/** What verdicts do to rows, outbox and dead letters (SPEC 4, "The client's side"). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { reading } from "../../src/protocol/clock.ts";
import { gone, id, Local, liveQuery, note } from "../support/local.ts";
import { later, refused } from "../support/service.ts";
import { until } from "../support/time.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

const ANN = "user:ann";
const titleOf = async (row: string) => (await local.notes.get(row))?.title;

describe("applied (I35)", () => {
  test("what was applied stays on top until the replica has reached its version, then goes", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.answer({}, 3);
    expect(await local.outbox.pending()).toEqual([]);
    await local.apply(ANN, [note(id(1), 2, { title: "theirs" })]);
    expect(await titleOf(id(1))).toBe("mine");
    expect(await local.records()).toHaveLength(1);
    await local.apply(ANN, [note(id(1), 3, { title: "merged" })]);
    expect(await titleOf(id(1))).toBe("merged");
    expect(await local.records()).toEqual([]);
  });

  test("no live query ever sees an edit flicker, from the write to the run that brings it", async () => {
    await local.apply(ANN, [note(id(1), 1, { title: "old" })]);
    const seen: (string | undefined)[] = [];
    const watching = liveQuery(() => local.notes.get(id(1))).subscribe((row) => seen.push(row?.title));
    await until(() => seen.length > 0);
    await local.notes.update(id(1), { title: "new" });
    await local.answer({}, 3);
    await local.apply(ANN, [note(id(2), 2)]);
    await local.apply(ANN, [note(id(1), 3, { title: "new", body: "end" })]);
    await until(async () => seen.at(-1) === "new" && (await local.notes.get(id(1)))?.body === "end");
    watching.unsubscribe();
    expect(seen.join(",").replace(/(old|new)(,\1)+/g, "$1")).toBe("old,new");
  });

  test("what was applied at a version that the replica has is done at once", async () => {
    await local.notes.add({ id: id(1), title: "mine" });
    const sent = await local.handOver(10);
    await local.apply(ANN, [note(id(1), 5, { title: "mine" })]);
    await local.settle(sent, { scope: ANN, version: 5 });
    expect(await local.records()).toEqual([]);
    expect(await titleOf(id(1))).toBe("mine");
  });

  test("what was applied at a version that a page already told of stays on top until the last page", async () => {
    await local.apply(ANN, [note(id(1), 1, { title: "old" })]);
    await local.notes.update(id(1), { title: "mine" });
    const sent = await local.handOver();
    // Of two pages the first: others have written the row again, so that it comes in the second one alone.
    await local.apply(ANN, [note(id(2), 8)], { from: 1, to: 10, head: 20 });
    await local.settle(sent, { scope: ANN, version: 5 });
    expect(await titleOf(id(1))).toBe("mine");
    await local.apply(ANN, [note(id(1), 15, { title: "theirs" })], { from: 10, to: 20, head: 20 });
    expect(await titleOf(id(1))).toBe("theirs");
    expect(await local.records()).toEqual([]);
  });

  test("what was applied without a version has nothing to wait for", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.delete(id(1));
    await local.answer({}, 0);
    expect(await local.records()).toEqual([]);
  });

  test("a later edit of a row that is awaited stays on top of it", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "one" });
    await local.answer({}, 2);
    await local.notes.update(id(1), { body: "two" });
    await local.apply(ANN, [note(id(1), 2, { title: "one" })]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "one", body: "two" });
    expect(await local.records()).toHaveLength(1);
  });

  test("versions awaited lapse with a reset, and with an answer to a push from before one", async () => {
    await local.apply(ANN, [note(id(1), 9)]);
    await local.notes.update(id(1), { title: "one" });
    await local.answer({}, 10);
    const reset = () => local.apply(ANN, [note(id(1), 2)], { from: 0, to: 2, head: 2, reset: true }, true);
    await reset();
    expect(await local.records()).toEqual([]);
    await local.notes.update(id(1), { title: "two" });
    await local.answer({}, 30, reset);
    expect(await local.records()).toEqual([]);
    expect(await titleOf(id(1))).toBe("t");
  });

  test("versions awaited lapse in a scope that may not be read, and its rows go", async () => {
    await local.tasks.add({ id: id(1), workspace_id: "1", title: "a" });
    await local.answer({}, 3);
    await local.replica.lapseBeyond([ANN], (await local.meta()).client);
    expect(await local.records()).toEqual([]);
    expect(await local.tasks.count()).toBe(0);
  });

  test("versions awaited lapse for rows whose key holds for their scope alone, too", async () => {
    await local.tags.add({ tag: "x", workspace_id: "7" });
    await local.answer({}, 5);
    await local.replica.lapseBeyond([ANN], (await local.meta()).client);
    expect(await local.records()).toEqual([]);
    expect(await local.tags.count()).toBe(0);
  });

  test("versions awaited in a scope that may be read do not lapse", async () => {
    await local.tasks.add({ id: id(1), workspace_id: "1", title: "a" });
    await local.answer({}, 3);
    await local.replica.lapseBeyond([ANN, "workspace:1"], (await local.meta()).client);
    expect(await local.tasks.count()).toBe(1);
  });
});

describe("superseded", () => {
  test("what was superseded goes, and the row shows what the server has", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.answer({ [id(1)]: { status: "superseded" } }, 0);
    expect(await local.records()).toEqual([]);
    expect(await titleOf(id(1))).toBe("t");
  });
});

describe("rejected (I26)", () => {
  test("what was rejected is rolled back and becomes a dead letter with its reason", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.answer({ [id(1)]: refused("rule", "title") }, 0);
    expect(await titleOf(id(1))).toBe("t");
    expect(await local.records()).toEqual([]);
    expect(await local.parked()).toMatchObject([
      { code: "rule", message: "it is rule", field: "title", cause: null, mutation: { fields: { title: "mine" } } },
    ]);
  });

  test("a rejection leaves later edits of other fields of its row on top", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "bad" });
    const sent = await local.handOver(10);
    await local.notes.update(id(1), { body: "good" });
    await local.settle(sent, refused("rule"));
    expect(await local.notes.get(id(1))).toMatchObject({ title: "t", body: "good" });
    expect(await local.records()).toHaveLength(1);
  });

  test("what builds on a rejected put is parked with it, and rolled back: edits, and rows that refer to it", async () => {
    await local.notes.add({ id: id(1), title: "parent" });
    const sent = await local.handOver(10);
    await local.notes.update(id(1), { body: "more" });
    await local.notes.add({ id: id(2), title: "child", note_id: id(1) });
    await local.notes.add({ id: id(3), title: "stranger" });
    await local.settle(sent, refused("rule"));
    expect((await local.notes.toArray()).map(({ title }) => title)).toEqual(["stranger"]);
    const first = sent[0]?.seq;
    expect((await local.parked()).map(({ code, cause }) => [code, cause])).toEqual([
      ["rule", null],
      ["depends", first],
      ["depends", first],
    ]);
    expect(await local.records()).toHaveLength(1);
  });

  test("a group that builds on a rejected put in one of its writes is parked whole, in all its scopes", async () => {
    await local.notes.add({ id: id(1), title: "a" });
    const sent = await local.handOver(1);
    await local.db.transaction("rw", local.notes, local.tasks, async () => {
      await local.notes.add({ id: id(2), title: "b", note_id: id(1) });
      await local.tasks.add({ id: id(3), workspace_id: "7", title: "c" });
    });
    await local.settle(sent, refused("rule"));
    expect(await local.parked()).toHaveLength(3);
    expect([await local.notes.count(), await local.tasks.count()]).toEqual([0, 0]);
  });

  test("a rejected put is rolled back where keys hold for their scope alone, too", async () => {
    await local.tags.add({ tag: "x", workspace_id: "7" });
    await local.answer({ x: refused("forbidden") }, 0);
    expect(await local.parked()).toHaveLength(1);
    expect(await local.tags.count()).toBe(0);
  });

  test("a rejected delete shows the row again where keys hold for their scope alone, too", async () => {
    const stamp = "2027-01-15T08:00:00.000000Z";
    const doc = { tag: "x", color: "red", created_at: stamp, updated_at: stamp };
    await local.apply("workspace:7", [{ entity: "tags", row: "x", version: 1, doc }]);
    await local.tags.delete(["7", "x"]);
    await local.answer({ x: refused("forbidden") }, 0);
    expect(await local.tags.toArray()).toMatchObject([{ tag: "x", color: "red" }]);
  });

  test("an edit of a row that the server has does not depend on a rejected edit before it", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "bad" });
    const sent = await local.handOver(10);
    await local.notes.delete(id(1));
    await local.settle(sent, refused("rule"));
    expect((await local.said()).map(([op]) => op)).toEqual(["delete"]);
  });

  test("a revoked scope's mutations become dead letters, and others stay", async () => {
    await local.tasks.add({ workspace_id: "1", title: "a" });
    await local.notes.add({ title: "b" });
    await local.revoke("workspace:1");
    expect(await local.parked()).toMatchObject([{ code: "revoked", mutation: { scope: "workspace:1" } }]);
    expect((await local.records()).map(({ scope }) => scope)).toEqual([ANN]);
    expect(await local.tasks.count()).toBe(0);
  });
});

describe("revoked", () => {
  test("versions awaited lapse with a revocation, and what was applied shows no more", async () => {
    await local.tasks.add({ id: id(1), workspace_id: "1", title: "a" });
    await local.answer({}, 3);
    await local.revoke("workspace:1");
    expect(await local.records()).toEqual([]);
    expect(await local.tasks.count()).toBe(0);
    expect(await local.parked()).toEqual([]);
  });
});

describe("retry", () => {
  test("what is put off stays where it was, in order, with its reading", async () => {
    for (const at of [1, 2, 3]) await local.notes.add({ id: id(at), title: "a" });
    const before = await local.outbox.pending();
    const settled = await local.answer({ [id(2)]: later("unavailable"), [id(3)]: later("unavailable") }, 1);
    expect(settled.kept.map(({ row }) => row)).toEqual([id(2), id(3)]);
    expect((await local.outbox.pending()).map(({ seq, at }) => [seq, at])).toEqual(
      before.slice(1).map(({ seq, at }) => [seq, at]),
    );
  });

  test("what was not answered at all is kept (I25)", async () => {
    await local.notes.add({ id: id(1), title: "a" });
    const sent = await local.handOver(10);
    await local.outbox.settle(sent, { results: [], clock: reading(1, 0, "0".repeat(16)) }, await local.meta(), null);
    expect(await local.outbox.pending()).toHaveLength(1);
  });

  test("an answer that was settled already, by another tab, changes nothing", async () => {
    await local.notes.add({ id: id(1), title: "a" });
    const sent = await local.handOver(10);
    await local.settle(sent, { scope: ANN, version: 4 });
    await local.settle(sent, refused("rule"));
    await local.apply(ANN, [note(id(1), 4)]);
    await local.settle(sent, { scope: ANN, version: 4 });
    expect(await local.parked()).toHaveLength(0);
    expect(await local.records()).toEqual([]);
  });
});

describe("readings (I6)", () => {
  test("what was never handed over is stamped anew by the offset, in order; what was keeps its reading", async () => {
    await local.notes.add({ id: id(1), title: "a" });
    await local.handOver(10);
    await local.notes.bulkAdd([2, 3].map((at) => ({ id: id(at), title: "a" })));
    const [handed] = await local.records();
    await local.outbox.correct(null, 3_600_000, local.time.now + 3_600_000);
    const after = await local.records();
    expect(after[0]?.at).toBe(handed?.at);
    expect(after.map(({ at }) => at)).toEqual(after.map(({ at }) => at).sort());
    expect(after[1]?.at.slice(0, 12)).toBe(reading(local.time.now + 3_600_000, 0, "").slice(0, 12));
    expect(after.map(({ handed }) => handed)).toEqual([true, false, false]);
  });

  test("after clock_ahead everything from there on is stamped anew, and nothing is dropped", async () => {
    local.time.now += 600_000;
    for (const at of [1, 2]) await local.notes.add({ id: id(at), title: "a" });
    const [first] = await local.handOver(10);
    local.time.now -= 600_000;
    await local.outbox.correct(first?.seq ?? 0, -600_000, local.time.now);
    const after = await local.records();
    expect(after).toHaveLength(2);
    for (const { at } of after) expect(at < reading(local.time.now + 1_000, 0, "")).toBe(true);
    expect((after[0]?.at ?? "") < (after[1]?.at ?? "")).toBe(true);
  });

  test("that a mutation is given to the transport is noted before it happens", async () => {
    await local.notes.add({ title: "a" });
    expect(await local.handOver(10)).toMatchObject([{ handed: true }]);
    expect(await local.records()).toMatchObject([{ handed: true }]);
  });
});

describe("what is sent next", () => {
  test("a batch holds no part of a group, and at least one whole group however little is asked for", async () => {
    await local.db.transaction("rw", local.notes, () =>
      local.notes.bulkAdd([{ title: "a" }, { title: "b" }, { title: "c" }]),
    );
    await local.notes.add({ title: "d" });
    expect(await local.handOver(1)).toHaveLength(3);
    expect(await local.handOver(4)).toHaveLength(4);
  });

  test("how many wait, and since when, does not count what is only awaited", async () => {
    expect(await local.outbox.waiting()).toEqual({ pending: 0, since: null, rejected: 0 });
    await local.notes.add({ title: "a" });
    await local.answer({}, 5);
    local.time.pass(1_000);
    await local.notes.add({ title: "b" });
    expect(await local.outbox.waiting()).toEqual({ pending: 1, since: local.time.now, rejected: 0 });
  });

  test("a mutation leaves the outbox for a row that was deleted by others and shows nothing of it", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.apply(ANN, [gone("notes", id(1), 2)]);
    await local.answer({ [id(1)]: { status: "superseded", reason: "deleted" } }, 0);
    expect(await local.notes.count()).toBe(0);
    expect(await local.bases()).toEqual([]);
  });
});

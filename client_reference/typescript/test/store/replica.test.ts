/** Runs as they change what is on the disk (SPEC 5, "Applying runs"). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ofRows } from "../../src/protocol/digest.ts";
import { gone, id, Local, liveQuery, note, task } from "../support/local.ts";
import { until } from "../support/time.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

const ANN = "user:ann";
const titles = async () => Object.fromEntries((await local.notes.toArray()).map(({ id, title }) => [id, title]));
const digestOf = (...rows: [row: string, version: number][]) =>
  ofRows(rows.map(([row, version]): [string, string, number] => ["notes", row, version]));

describe("the four rules (I34)", () => {
  test("a run that joins on is applied, with the watermark", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.apply(ANN, [note(id(2), 2), gone("notes", id(1), 3)]);
    expect(Object.keys(await titles())).toEqual([id(2)]);
    expect(await local.replica.watermark()).toEqual({ [ANN]: "epoch.3.0.3" });
  });

  test("a run from below the highest head seen is ignored", async () => {
    await local.apply(ANN, [note(id(1), 5)], { to: 5, head: 9 });
    await local.apply(ANN, [note(id(1), 6, { title: "old" })], { from: 5, to: 6, head: 6 });
    expect(await titles()).toEqual({ [id(1)]: "t" });
    expect(await local.scope(ANN)).toMatchObject({ to: 5, highest: 9 });
  });

  test("a run that was repeated, or overlaps, changes nothing but what is new", async () => {
    await local.apply(ANN, [note(id(1), 1, { title: "one" }), note(id(2), 2)]);
    await local.apply(ANN, [note(id(1), 1, { title: "stale" }), note(id(2), 2)], { from: 0, to: 2 });
    await local.apply(ANN, [note(id(2), 2, { title: "stale" }), note(id(4), 4)], { from: 1, to: 4 });
    expect(await titles()).toEqual({ [id(1)]: "one", [id(2)]: "t", [id(4)]: "t" });
  });

  test("a run from 0 that is new replaces: what it does not name is gone", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(2), 2)]);
    await local.apply(ANN, [note(id(3), 3)], { from: 0, to: 3 });
    expect(Object.keys(await titles())).toEqual([id(3)]);
    expect(await local.bases()).toHaveLength(1);
  });

  test("what a replacement of several pages takes away is shown until the last of them has come", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(2), 2), note(id(3), 3)]);
    await local.notes.update(id(1), { title: "sent" });
    await local.answer({}, 4);
    await local.notes.update(id(3), { title: "mine" });
    const reset = { from: 0, head: 9, reset: true };
    await local.apply(ANN, [note(id(2), 5, { title: "two" })], { ...reset, to: 5 }, true);
    expect(await titles()).toEqual({ [id(1)]: "sent", [id(2)]: "two", [id(3)]: "mine" });
    await local.apply(ANN, [note(id(3), 7)], { from: 5, to: 7, head: 9 });
    expect(await titles()).toEqual({ [id(1)]: "sent", [id(2)]: "two", [id(3)]: "mine" });
    await local.apply(ANN, [note(id(4), 9)], { from: 7, to: 9, head: 9 });
    expect(await titles()).toEqual({ [id(2)]: "two", [id(3)]: "mine", [id(4)]: "t" });
    const { computed, kept } = await local.verify(ANN);
    expect(computed).toBe(kept);
  });

  test("a reset of a scope of which nothing is known takes along what was applied there before", async () => {
    await local.notes.add({ id: id(1), title: "sent" });
    await local.answer({}, 3);
    await local.apply(ANN, [note(id(2), 5)], { from: 0, to: 5, head: 9, reset: true }, true);
    await local.apply(ANN, [note(id(3), 9)], { from: 5, to: 9, head: 9 });
    expect(Object.keys(await titles())).toEqual([id(2), id(3)]);
  });

  test("a replacement that is overtaken by another one leaves no row of before behind", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(2), 2)]);
    await local.apply(ANN, [note(id(3), 5)], { from: 0, to: 5, head: 9, reset: true }, true);
    await local.apply(ANN, [note(id(4), 1)], { from: 0, to: 1, head: 1, reset: true }, true);
    expect(Object.keys(await titles())).toEqual([id(4)]);
  });

  test("a run from 0 that is no reset and brings nothing new replaces nothing", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(2), 2)]);
    await local.apply(ANN, [note(id(2), 2)], { from: 0, to: 2 });
    expect(Object.keys(await titles())).toEqual([id(1), id(2)]);
  });

  test("a run from above is not applied, and asks for a pull", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    expect(await local.apply(ANN, [note(id(2), 5)], { from: 4, to: 5 })).toMatchObject({ mustPull: true });
    expect(Object.keys(await titles())).toEqual([id(1)]);
    expect(await local.scope(ANN)).toMatchObject({ to: 1, highest: 1 });
  });

  test("a reset in the answer to our own request replaces, even to a lower head; an unasked one is ignored", async () => {
    await local.apply(ANN, [note(id(1), 7)]);
    const reset = { from: 0, to: 2, head: 2, reset: true };
    await local.apply(ANN, [note(id(2), 2)], reset);
    expect(Object.keys(await titles())).toEqual([id(1)]);
    await local.apply(ANN, [note(id(2), 2)], reset, true);
    expect(Object.keys(await titles())).toEqual([id(2)]);
    expect(await local.scope(ANN)).toMatchObject({ to: 2, highest: 2 });
  });

  test("an empty scope is remembered, so that it is not asked for from 0 again", async () => {
    await local.apply(ANN, []);
    expect(await local.replica.watermark()).toEqual({ [ANN]: "epoch.0.0.3" });
  });
});

describe("the digest (I32)", () => {
  test("over changes, deletions and repetitions the digest is that of the rows", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(2), 2)], { digest: digestOf([id(1), 1], [id(2), 2]) });
    await local.apply(ANN, [note(id(1), 3)], { digest: digestOf([id(1), 3], [id(2), 2]) });
    const last = await local.apply(ANN, [gone("notes", id(2), 4)], { digest: digestOf([id(1), 3]) });
    expect(last.faulty).toBe(false);
    expect(await local.verify(ANN)).toEqual({ computed: digestOf([id(1), 3]), kept: digestOf([id(1), 3]) });
  });

  test("a wrong digest drops the watermark and heals with the next run from 0", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(9), 2)]);
    const wrong = await local.apply(ANN, [note(id(2), 3)], { digest: digestOf([id(1), 1], [id(2), 3]) });
    expect(wrong.faulty).toBe(true);
    expect(await local.replica.watermark()).toEqual({});
    const healed = await local.apply(ANN, [note(id(1), 1), note(id(2), 3)], {
      from: 0,
      digest: digestOf([id(1), 1], [id(2), 3]),
    });
    expect(healed.faulty).toBe(false);
    expect(Object.keys(await titles())).toEqual([id(1), id(2)]);
  });

  test("a digest below the highest head seen proves nothing and is not looked at", async () => {
    await local.apply(ANN, [note(id(1), 1)], { to: 1, head: 3 });
    const step = await local.apply(ANN, [note(id(2), 2)], { to: 2, head: 3, digest: "9-000000000000" });
    expect(step.faulty).toBe(false);
  });

  test("rows of entities that this app does not know count, and are not kept", async () => {
    const change = { entity: "gadgets", row: "x", version: 2, doc: { id: "x", size: 1 } };
    const digest = ofRows([
      ["notes", id(1), 1],
      ["gadgets", "x", 2],
    ]);
    expect(await local.apply(ANN, [note(id(1), 1), change], { digest })).toMatchObject({ faulty: false });
    expect(await local.verify(ANN)).toEqual({ computed: digest, kept: digest });
    const after = await local.apply(ANN, [{ ...change, version: 3, doc: null }], { digest: digestOf([id(1), 1]) });
    expect(after.faulty).toBe(false);
  });

  test("a page of 1,000 rows is one transaction, and its digest is right", async () => {
    const changes = Array.from({ length: 1_000 }, (_, at) => note(id(at), at + 1));
    const digest = digestOf(...changes.map(({ row, version }): [string, number] => [row, version]));
    let seen = 0;
    const counts = new Set<number>();
    const watching = liveQuery(() => local.notes.count()).subscribe((count) => {
      seen += 1;
      counts.add(count);
    });
    await until(() => seen === 1);
    expect(await local.apply(ANN, changes, { digest })).toMatchObject({ faulty: false });
    await until(() => counts.has(1_000));
    watching.unsubscribe();
    expect(counts).toEqual(new Set([0, 1_000]));
  });
});

describe("documents", () => {
  test("fields that this app does not know are left out, and those that a document leaves out take their default", async () => {
    const { doc, ...change } = note(id(1), 1);
    const { body: _, count: __, labels: ___, ...rest } = doc ?? {};
    await local.apply(ANN, [{ ...change, doc: { ...rest, color: "red" } }]);
    const row = await local.notes.get(id(1));
    expect(row).toMatchObject({ body: "", count: null, labels: {} });
    expect(row).not.toHaveProperty("color");
  });

  test("rows bear the scope that they came from", async () => {
    await local.apply("workspace:w%201", [task(id(1), 1)]);
    expect(await local.tasks.get(id(1))).toMatchObject({ workspace_id: "w 1" });
  });

  test("of keys that hold for their scope alone each scope has its own row", async () => {
    const tag = (version: number, color: string) => {
      const at = "2027-01-15T08:00:00.000000Z";
      return { entity: "tags", row: "red", version, doc: { tag: "red", color, created_at: at, updated_at: at } };
    };
    await local.apply("workspace:1", [tag(1, "red")]);
    await local.apply("workspace:2", [tag(1, "pink")]);
    await local.apply("workspace:1", [gone("tags", "red", 2)]);
    expect((await local.tags.toArray()).map(({ workspace_id, color }) => [workspace_id, color])).toEqual([
      ["2", "pink"],
    ]);
  });
});

describe("rows belong to their scope (I36)", () => {
  const A = "workspace:a";
  const B = "workspace:b";
  const early = "2027-01-15T08:00:00.000000Z";
  const late = "2027-01-15T08:00:01.000000Z";
  /** A task that was made in A, then moved to B. */
  const steps: [name: string, () => Promise<unknown>][] = [
    ["made in A", () => local.apply(A, [task(id(1), 1, "in A", early)], { from: 0, to: 1, head: 1 })],
    ["gone from A", () => local.apply(A, [gone("tasks", id(1), 2)], { from: 1, to: 2, head: 2 })],
    ["made in B", () => local.apply(B, [task(id(1), 1, "in B", late)])],
  ];
  const orders = [
    [0, 1, 2],
    [0, 2, 1],
    [2, 0, 1],
  ];

  test.each(orders)(
    "a row that moved from A to B is there, from B, when it came by steps %i, %i, %i",
    async (...order) => {
      for (const at of order) await steps[at]?.[1]();
      expect(await local.tasks.toArray()).toMatchObject([{ title: "in B", workspace_id: "b" }]);
      for (const scope of [A, B]) {
        const { computed, kept } = await local.verify(scope);
        expect(computed).toBe(kept);
      }
    },
  );

  test("a row in two scopes shows the later one, and the other when that is gone", async () => {
    await local.apply(B, [task(id(1), 1, "in B", late)]);
    await local.apply(A, [task(id(1), 1, "in A", early)]);
    expect(await local.tasks.get(id(1))).toMatchObject({ title: "in B" });
    await local.apply(B, [gone("tasks", id(1), 2)]);
    expect(await local.tasks.toArray()).toMatchObject([{ title: "in A", workspace_id: "a" }]);
  });

  test("a revocation of A leaves the row that has moved to B", async () => {
    await local.apply(A, [task(id(1), 1, "in A", early), task(id(2), 2)]);
    await local.apply(B, [task(id(1), 1, "in B", late)]);
    await local.revoke(A);
    expect(await local.tasks.toArray()).toMatchObject([{ id: id(1), title: "in B" }]);
    expect(await local.replica.watermark()).toEqual({ [B]: "epoch.1.0.3" });
  });

  test("a revocation of B brings back what stands in A", async () => {
    await local.apply(A, [task(id(1), 1, "in A", early)]);
    await local.apply(B, [task(id(1), 1, "in B", late)]);
    await local.revoke(B);
    expect(await local.tasks.toArray()).toMatchObject([{ id: id(1), title: "in A", workspace_id: "a" }]);
  });

  test("a reset of A removes no row of B, and a run from 0 neither", async () => {
    await local.apply(B, [task(id(1), 1, "in B", late), task(id(2), 2)]);
    await local.apply(A, [task(id(1), 1, "in A", early)]);
    await local.apply(A, [], { from: 0, to: 2, head: 2, reset: true }, true);
    expect((await local.tasks.toArray()).map(({ id, workspace_id }) => [id, workspace_id])).toEqual([
      [id(1), "b"],
      [id(2), "b"],
    ]);
    expect((await local.verify(B)).computed).toBe((await local.verify(B)).kept);
  });
});

describe("pending edits on top (I35)", () => {
  test("an edit stays on top of what others change, field by field", async () => {
    await local.apply(ANN, [note(id(1), 1, { body: "old" })]);
    await local.notes.update(id(1), { title: "mine" });
    await local.apply(ANN, [note(id(1), 2, { title: "theirs", body: "theirs" })]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "mine", body: "theirs" });
  });

  test("an edit of a row that others delete shows nothing, and a put shows", async () => {
    await local.apply(ANN, [note(id(1), 1), note(id(2), 2)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.notes.delete(id(2));
    await local.notes.add({ id: id(2), title: "again" });
    await local.apply(ANN, [gone("notes", id(1), 3), gone("notes", id(2), 4)]);
    expect(await titles()).toEqual({ [id(2)]: "again" });
  });

  test("a row that was deleted here stays away though others change it", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.delete(id(1));
    await local.apply(ANN, [note(id(1), 2, { title: "theirs" })]);
    expect(await titles()).toEqual({});
  });

  test("a run from 0 and a reset keep the outbox and put it back on top", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.notes.add({ id: id(2), title: "new" });
    await local.apply(ANN, [note(id(1), 1, { body: "anew" })], { from: 0, to: 1, head: 1, reset: true }, true);
    expect(await titles()).toEqual({ [id(1)]: "mine", [id(2)]: "new" });
    expect(await local.records()).toHaveLength(2);
  });

  test("an edit of a row that a run from 0 does not bring shows nothing until it is answered", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.apply(ANN, [], { from: 0, to: 2, head: 2 });
    expect(await titles()).toEqual({});
    expect(await local.records()).toHaveLength(1);
  });

  test("the digest is that of the server's rows, whatever the pending edits show", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.notes.add({ id: id(2), title: "new" });
    const digest = digestOf([id(1), 2]);
    expect(await local.apply(ANN, [note(id(1), 2)], { digest })).toMatchObject({ faulty: false });
    expect((await local.verify(ANN)).computed).toBe(digest);
  });

  test("an edit in one scope is in the way of no run from 0 and no revocation in another", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.update(id(1), { title: "mine" });
    await local.apply("workspace:7", [task(id(2), 1)]);
    expect(await local.tasks.count()).toBe(1);
    await local.revoke("workspace:7");
    expect(await local.tasks.count()).toBe(0);
    expect(await titles()).toEqual({ [id(1)]: "mine" });
  });
});

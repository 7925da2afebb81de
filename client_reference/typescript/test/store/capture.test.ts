/** The app's writes: what they leave in the tables and in the outbox (SPEC 2 to 4). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { STORES } from "../../src/store/records.ts";
import { Dexie, gone, id, Local, liveQuery, note } from "../support/local.ts";
import { until } from "../support/time.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

const INITIAL = {
  body: "",
  count: null,
  price: null,
  done: false,
  day: null,
  labels: {},
  extra: null,
  note_id: null,
};
const ANN = "user:ann";

/** A note that the server has, at version 1. */
async function settledNote(fields: Parameters<typeof note>[2] = {}): Promise<string> {
  await local.apply(ANN, [note(id(1), 1, fields)]);
  return id(1);
}

describe("what a write leaves in the outbox", () => {
  test("an add is a put of the whole row, its defaults filled in and its key drawn", async () => {
    const key = await local.notes.add({ title: "a" });
    expect(key).toMatch(/^[0-9a-f-]{36}$/);
    expect(await local.records()).toMatchObject([
      {
        op: "put",
        scope: ANN,
        entity: "notes",
        row: key,
        fields: { title: "a", ...INITIAL },
        schema: 3,
        group: null,
        handed: false,
        wall: local.time.now,
      },
    ]);
  });

  test("the row is in its table at once, with its owner and both times", async () => {
    const key = await local.notes.add({ title: "a" });
    const at = "2027-01-15T08:00:00.000000Z";
    expect(await local.notes.get(key)).toEqual({
      id: key,
      user_id: "ann",
      title: "a",
      ...INITIAL,
      created_at: at,
      updated_at: at,
    });
  });

  test("an update is a patch of what has changed and of nothing else", async () => {
    const key = await settledNote();
    expect(await local.notes.update(key, { title: "b", body: "" })).toBe(1);
    expect(await local.said()).toEqual([["patch", key, { title: "b" }]]);
  });

  test("a put over a visible row is a patch, so that what others did is not wiped out", async () => {
    const key = await settledNote({ body: "theirs" });
    const row = await local.notes.get(key);
    await local.notes.put({ ...(row as NonNullable<typeof row>), count: 3 });
    expect(await local.said()).toEqual([["patch", key, { count: 3 }]]);
  });

  test("a put of a row that is not visible is a put", async () => {
    await local.notes.put({ id: id(2), title: "new" });
    expect(await local.said()).toEqual([["put", id(2), { title: "new", ...INITIAL }]]);
  });

  test("a write that changes nothing says nothing, and leaves the row's times alone", async () => {
    const key = await settledNote();
    const before = await local.notes.get(key);
    local.time.pass(1_000);
    await local.notes.update(key, { title: "t" });
    await local.notes.put(before as NonNullable<typeof before>);
    expect(await local.said()).toEqual([]);
    expect(await local.notes.get(key)).toEqual(before);
    expect(local.commits).toBe(0);
  });

  test("a map is patched key by key, with keys escaped and missing ones taken out", async () => {
    const key = await settledNote({ labels: { "a/b": 1, keep: 1, gone: 1 } });
    await local.notes.update(key, { labels: { "a/b": 2, keep: 1, "~": 3 } });
    expect(await local.said()).toEqual([["patch", key, { "labels/gone": null, "labels/a~1b": 2, "labels/~0": 3 }]]);
  });

  test("a json column is replaced as a whole", async () => {
    const key = await settledNote({ extra: { one: 1, two: 2 } });
    await local.notes.update(key, { "extra.two": 3 } as never);
    expect(await local.said()).toEqual([["patch", key, { extra: { one: 1, two: 3 } }]]);
  });

  test("a delete says that the row is gone, and of a row that is not there it says nothing", async () => {
    const key = await settledNote();
    await local.notes.delete(key);
    await local.notes.delete(id(9));
    expect(await local.said()).toEqual([["delete", key, null]]);
    expect(await local.notes.count()).toBe(0);
  });

  test("values are kept in their canonical form", async () => {
    const key = await local.notes.add({ title: "a", price: "1.5", count: -0 });
    expect(await local.notes.get(key)).toMatchObject({ price: "1.50", count: 0 });
    expect(await local.records()).toMatchObject([{ fields: { price: "1.50" } }]);
  });

  test("what the app says of the two times is not sent", async () => {
    await local.notes.add({ title: "a", created_at: "never", updated_at: "never" });
    const [record] = await local.records();
    expect(Object.keys(record?.fields ?? {})).not.toContain("created_at");
    expect((await local.notes.toArray())[0]?.created_at).toBe("2027-01-15T08:00:00.000000Z");
  });

  test("the object that the app gave gets its key, as with keys of Dexie's own drawing, and nothing else", async () => {
    const given = { title: "a", price: "1.5" };
    const key = await local.notes.put(given);
    expect(given).toEqual({ id: key, title: "a", price: "1.5" });
  });
});

describe("writes of many rows", () => {
  test("bulkAdd, bulkPut and bulkDelete leave one mutation for each row, in order", async () => {
    await local.notes.bulkAdd([1, 2, 3].map((number) => ({ id: id(number), title: `${number}` })));
    await local.notes.bulkPut([2, 4].map((number) => ({ id: id(number), title: "put" })));
    await local.notes.bulkDelete([id(1), id(3), id(9)]);
    expect((await local.said()).map(([op, row]) => [op, row])).toEqual([
      ["put", id(1)],
      ["put", id(2)],
      ["put", id(3)],
      ["patch", id(2)],
      ["put", id(4)],
      ["delete", id(1)],
      ["delete", id(3)],
    ]);
  });

  test("bulkAdd gives back the keys that were drawn", async () => {
    const keys = await local.notes.bulkAdd([{ title: "a" }, { title: "b" }], { allKeys: true });
    expect(await local.notes.bulkGet(keys)).toMatchObject([{ title: "a" }, { title: "b" }]);
  });

  test("modify patches what it changes in each row, and deletes where it says so", async () => {
    await local.apply(
      ANN,
      [1, 2, 3].map((number) => note(id(number), number, { count: number })),
    );
    await local.notes
      .where("title")
      .equals("t")
      .modify((row, ref) => {
        if (row.count === 3) delete (ref as { value?: unknown }).value;
        else row.done = row.count === 2;
      });
    const said = await local.said();
    expect(said).toHaveLength(2);
    expect(said).toEqual(
      expect.arrayContaining([
        ["patch", id(2), { done: true }],
        ["delete", id(3), null],
      ]),
    );
  });

  test("a collection's delete and a table's clear delete each row that was there", async () => {
    await local.apply(
      ANN,
      [1, 2, 3].map((number) => note(id(number), number, { title: number === 1 ? "a" : "b" })),
    );
    await local.notes.where("title").equals("a").delete();
    await local.notes.clear();
    expect((await local.said()).map(([op, row]) => [op, row])).toEqual([
      ["delete", id(1)],
      ["delete", id(2)],
      ["delete", id(3)],
    ]);
    expect(await local.notes.count()).toBe(0);
  });

  test("upsert is a put of a new row and a patch of a visible one", async () => {
    await local.notes.upsert(id(1), { title: "new" });
    await local.notes.upsert(id(1), { body: "more" });
    expect((await local.said()).map(([op, , fields]) => [op, fields])).toEqual([
      ["put", { title: "new", ...INITIAL }],
      ["patch", { body: "more" }],
    ]);
  });

  test("of several values of one key in one bulkPut each is told against the one before it", async () => {
    await local.notes.bulkPut([
      { id: id(1), title: "a" },
      { id: id(1), title: "b" },
      { id: id(1), title: "b", count: 1 },
    ]);
    expect((await local.said()).map(([op, , fields]) => [op, fields])).toEqual([
      ["put", { title: "a", ...INITIAL }],
      ["patch", { title: "b" }],
      ["patch", { count: 1 }],
    ]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "b", count: 1 });
  });

  test("several values of one visible key in one bulkPut leave the server's state behind them, not the first one's", async () => {
    const key = await settledNote();
    await local.notes.bulkPut([
      { id: key, title: "a" },
      { id: key, title: "b" },
    ]);
    expect(await local.bases()).toMatchObject([{ name: `${ANN}/notes/${key}`, version: 1, doc: { title: "t" } }]);
  });
});

describe("keys and scopes", () => {
  test("rows of a shared scope say which, and go there", async () => {
    const key = await local.tasks.add({ workspace_id: "w 1", title: "a" });
    expect(await local.records()).toMatchObject([{ scope: "workspace:w%201", row: key, fields: { title: "a" } }]);
  });

  test("a put without the scope column over a visible row stays in its scope", async () => {
    const key = await local.tasks.add({ workspace_id: "1", title: "a" });
    await local.tasks.put({ id: key, title: "b" } as never);
    expect(await local.tasks.get(key)).toMatchObject({ workspace_id: "1", title: "b" });
  });

  test("keys that hold for their scope alone may be there in several scopes", async () => {
    await local.tags.bulkPut([
      { workspace_id: "1", tag: "red" },
      { workspace_id: "2", tag: "red" },
    ]);
    await local.tags.update(["2", "red"], { color: "red" });
    await local.tags.delete(["1", "red"]);
    const said = (await local.records()).map(({ op, scope, row }) => [op, scope, row]);
    expect(said).toEqual([
      ["put", "workspace:1", "red"],
      ["put", "workspace:2", "red"],
      ["patch", "workspace:2", "red"],
      ["delete", "workspace:1", "red"],
    ]);
  });

  test("a key of several columns travels as one text", async () => {
    await local.seats.add({ workspace_id: "1", hall: "a", seat: "7" });
    await local.seats.update(["a", "7"], { taken: true });
    expect((await local.records()).map(({ op, row, fields }) => [op, row, fields])).toEqual([
      ["put", "a:7", { taken: false }],
      ["patch", "a:7", { taken: true }],
    ]);
  });
});

describe("what is refused", () => {
  const code = (code: string, field: string | null = null) => expect.objectContaining({ code, field });

  test.each<[string, string | null, () => Promise<unknown>]>([
    ["unknown_field", "color", () => local.notes.add({ title: "a", color: "red" } as never)],
    ["invalid_field", "title", () => local.notes.add({ title: "a".repeat(21) })],
    ["invalid_field", "day", () => local.notes.add({ title: "a", day: "2027-02-30" })],
    ["invalid_field", "labels", () => local.notes.add({ title: "a", labels: { key: null } })],
    ["missing_field", "title", () => local.notes.add({} as never)],
    ["invalid_row", null, () => local.notes.add({ id: "no uuid", title: "a" })],
    ["invalid_row", null, () => local.tags.add({ workspace_id: "1" } as never)],
    ["invalid_row", null, () => local.seats.add({ workspace_id: "1", hall: "a:b", seat: "1" })],
    ["scope_missing", "workspace_id", () => local.tasks.add({ title: "a" } as never)],
    ["invalid_scope", "workspace_id", () => local.tasks.add({ workspace_id: "", title: "a" })],
    ["invalid_scope", "workspace_id", () => local.tasks.add({ workspace_id: 7, title: "a" } as never)],
    ["scope_change", "user_id", () => local.notes.add({ user_id: "bob", title: "a" })],
    ["too_large", null, () => local.notes.add({ title: "a", body: "b".repeat(256 << 10) })],
  ])("a value that cannot be is refused as %s, naming %s, and nothing is written", async (reason, field, write) => {
    await expect(write()).rejects.toEqual(code(reason, field));
    expect(await local.records()).toEqual([]);
    expect(await local.notes.count()).toBe(0);
    expect(await local.tasks.count()).toBe(0);
  });

  test("an update that would move a row to another scope is refused as scope_change", async () => {
    const key = await local.tasks.add({ workspace_id: "1", title: "a" });
    await expect(local.tasks.update(key, { workspace_id: "2" } as never)).rejects.toThrow(/another scope/);
    await expect(local.tasks.put({ id: key, workspace_id: "2", title: "a" })).rejects.toEqual(code("scope_change"));
    expect(await local.tasks.get(key)).toMatchObject({ workspace_id: "1" });
    expect(await local.records()).toHaveLength(1);
  });

  test("an update that breaks a field is refused and leaves the row as it was", async () => {
    const key = await settledNote();
    await expect(local.notes.update(key, { count: 1.5 })).rejects.toThrow(/count/);
    expect(await local.notes.get(key)).toMatchObject({ count: null });
    expect(await local.records()).toEqual([]);
  });

  test("a value of the server's that this app would refuse does not hinder an update of another field", async () => {
    const key = await settledNote({ title: "longer than the twenty characters of this app" });
    await local.notes.update(key, { done: true });
    expect(await local.said()).toEqual([["patch", key, { done: true }]]);
  });

  test("one bad value fails a whole bulk, as nothing of it can be told apart any more", async () => {
    await expect(local.notes.bulkPut([{ title: "good" }, { title: 7 } as never])).rejects.toThrow(/title/);
    expect(await local.notes.count()).toBe(0);
    expect(await local.records()).toEqual([]);
  });

  test("an add of a key that is there fails as Dexie's does, and nothing is recorded of it", async () => {
    const key = await settledNote();
    await expect(local.notes.add({ id: key, title: "again" })).rejects.toMatchObject({ name: "ConstraintError" });
    expect(await local.records()).toEqual([]);
    expect(await local.notes.get(key)).toMatchObject({ title: "t" });
    expect(await local.bases()).toEqual([{ name: `${ANN}/notes/${key}`, version: 1 }]);
  });

  test("of a bulkAdd with a key that is there, caught in its transaction, only the others are recorded", async () => {
    const key = await settledNote();
    await local.db.transaction("rw", local.notes, async () => {
      const failed = await local.notes
        .bulkAdd([
          { id: id(2), title: "b" },
          { id: key, title: "x" },
          { id: id(3), title: "c" },
        ])
        .catch((fault: InstanceType<typeof Dexie.BulkError>) => fault);
      expect(failed).toMatchObject({ name: "BulkError" });
    });
    expect((await local.said()).map(([op, row]) => [op, row])).toEqual([
      ["put", id(2)],
      ["put", id(3)],
    ]);
    expect(await local.notes.count()).toBe(3);
  });

  test("of two values of one new key in a bulkAdd only the first is recorded", async () => {
    await local.db.transaction("rw", local.notes, () =>
      local.notes
        .bulkAdd([
          { id: id(1), title: "a" },
          { id: id(1), title: "b" },
        ])
        .catch(() => undefined),
    );
    expect((await local.said()).map(([op, , fields]) => [op, fields?.title])).toEqual([["put", "a"]]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "a" });
  });
});

describe("whose outbox it is", () => {
  test("before anybody has signed in a write is refused as needs_auth", async () => {
    const nobody = await Local.open({ user: null });
    await expect(nobody.notes.add({ title: "a" })).rejects.toMatchObject({ code: "needs_auth" });
    expect(await nobody.notes.count()).toBe(0);
    nobody.close();
  });

  test("after another tab made it somebody else's a write is refused as user_changed", async () => {
    await local.db.table("sync_meta").put({ ...(await local.meta()), user: "bob" });
    await expect(local.notes.add({ title: "a" })).rejects.toMatchObject({ code: "user_changed" });
    expect(await local.records()).toEqual([]);
    expect(await local.notes.count()).toBe(0);
  });
});

describe("the app's own Dexie", () => {
  test("tables of the app's own are not touched and leave nothing in the outbox", async () => {
    const key = await local.drafts.add({ text: "a" });
    await local.drafts.update(key, { text: "b" });
    expect(await local.drafts.toArray()).toEqual([{ id: key, text: "b" }]);
    expect(await local.records()).toEqual([]);
    expect(local.commits).toBe(0);
  });

  test("before anybody has signed in the app's own tables can be written", async () => {
    const nobody = await Local.open({ user: null });
    await nobody.drafts.add({ text: "a" });
    expect(await nobody.drafts.count()).toBe(1);
    nobody.close();
  });

  test("hooks of the app run, and what they add is sent", async () => {
    local.notes.hook("creating", (_, row) => {
      row.body = "hooked";
    });
    local.notes.hook("updating", () => ({ count: 7 }));
    const key = await local.notes.add({ title: "a" });
    await local.notes.update(key, { title: "b" });
    expect((await local.said()).map(([op, , fields]) => [op, fields])).toEqual([
      ["put", { title: "a", ...INITIAL, body: "hooked" }],
      ["patch", { title: "b", count: 7 }],
    ]);
  });

  test("live queries see what is written, with what the client has filled in", async () => {
    const seen: unknown[] = [];
    const watching = liveQuery(() => local.notes.toArray()).subscribe((rows) => seen.push(rows));
    await until(() => seen.length === 1);
    const key = await local.notes.add({ title: "a" });
    await until(() => seen.length >= 2);
    watching.unsubscribe();
    expect(seen.at(-1)).toMatchObject([{ id: key, user_id: "ann", body: "" }]);
  });

  test("an upgrade of the app's own stores is no edit", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    local.close();
    const { name } = local.device;
    const raised = new Dexie(name, local.device.life().dexie);
    raised.use(local.capture);
    raised.version(3).stores({ notes: "id, user_id, title, note_id", ...STORES });
    raised
      .version(4)
      .stores({})
      .upgrade((trans) => trans.table("notes").toCollection().modify({ body: "moved" }));
    await raised.open();
    expect(await raised.table("notes").toArray()).toMatchObject([{ body: "moved" }]);
    expect(await raised.table("sync_outbox").count()).toBe(0);
    raised.close();
  });
});

describe("the server's state behind a pending edit", () => {
  test("the first edit of a row puts the server's document aside, and later ones leave it", async () => {
    const key = await settledNote();
    await local.notes.update(key, { title: "b" });
    await local.notes.update(key, { title: "c" });
    expect(await local.bases()).toMatchObject([{ version: 1, doc: { title: "t" }, hidden: `notes/${key}` }]);
  });

  test("a row that was made here has no state of the server's", async () => {
    const key = await local.notes.add({ title: "a" });
    await local.notes.update(key, { title: "b" });
    expect(await local.bases()).toEqual([]);
  });

  test("a row deleted here and added again is a put", async () => {
    const key = await settledNote();
    await local.notes.delete(key);
    await local.notes.add({ id: key, title: "again" });
    expect((await local.said()).map(([op]) => op)).toEqual(["delete", "put"]);
    await local.apply(ANN, [gone("notes", key, 2)]);
    expect(await local.notes.get(key)).toMatchObject({ title: "again" });
  });
});

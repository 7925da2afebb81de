/** Writes that one transaction begins without waiting for each other. */

import { afterEach, beforeEach, expect, test } from "vitest";
import { id, Local, note } from "../support/local.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

test("writes begun side by side are one group, and each has its own reading (I3)", async () => {
  await local.apply("user:ann", [note(id(1), 1)]);
  await local.db.transaction("rw", local.notes, () =>
    Promise.all([
      local.notes.add({ title: "a" }),
      local.notes.add({ title: "b" }),
      local.notes.update(id(1), { done: true }),
      local.notes.update(id(1), { title: "z" }),
    ]),
  );
  const records = await local.records();
  expect(records).toHaveLength(4);
  expect(new Set(records.map(({ group }) => group)).size).toBe(1);
  expect(new Set(records.map(({ at }) => at)).size).toBe(4);
});

test("a read after a write that nobody waits for sees it", async () => {
  const seen = await local.db.transaction("rw", local.notes, () => {
    void local.notes.add({ title: "a" });
    return local.notes.count();
  });
  expect(seen).toBe(1);
});

test("what several puts of one row say together is what the table shows (I35)", async () => {
  const before = { title: "o", body: "blue" };
  await local.apply("user:ann", [note(id(1), 1, before)]);
  await local.db.transaction("rw", local.notes, () =>
    Promise.all([
      local.notes.put({ id: id(1), title: "x", body: "red" }),
      local.notes.put({ id: id(1), title: "y", body: "blue" }),
    ]),
  );
  const said = Object.assign({ ...before }, ...(await local.said()).map(([, , fields]) => fields));
  expect(said).toEqual({ title: "y", body: "blue" });
  expect(await local.notes.get(id(1))).toMatchObject(said);
});

/** What the disk does not take: a row without its mutation, or a mutation without its row, is never there (I25). */

import type { DBCoreMutateResponse } from "dexie";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { id, Local, note } from "../support/local.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

type Failing = () => Promise<DBCoreMutateResponse>;

const full = new Error("the disk is full");
/** A request may fail as a whole, or be answered with the failure of its parts. */
const ways: [name: string, failing: Failing][] = [
  ["fails", () => Promise.reject(full)],
  [
    "says that it failed",
    () => Promise.resolve({ numFailures: 1, failures: { 0: full }, results: [], lastResult: undefined }),
  ],
];
const cases = ["sync_outbox", "sync_base", "sync_meta"].flatMap((store) =>
  ways.map(([name, failing]): [string, string, Failing] => [store, name, failing]),
);

/** Below the capture: from now on writes of this store fail; the result mends it. */
async function tear(store: string, failing: Failing): Promise<() => void> {
  let torn = false;
  local.db.close();
  local.db.use({
    stack: "dbcore",
    name: "disk",
    level: -2,
    create: (core) => ({
      ...core,
      table: (name) => {
        const table = core.table(name);
        return name === store ? { ...table, mutate: (request) => (torn ? failing() : table.mutate(request)) } : table;
      },
    }),
  });
  await local.db.open();
  torn = true;
  return () => {
    torn = false;
  };
}

describe.each(cases)("when a write to %s %s", (store, _, failing) => {
  test("neither the row nor the outbox shows anything of it", async () => {
    await local.apply("user:ann", [note(id(1), 1, { title: "old" })]);
    const mend = await tear(store, failing);
    await expect(local.notes.update(id(1), { title: "mine" })).rejects.toThrow();
    mend();
    expect(await local.notes.get(id(1))).toMatchObject({ title: "old" });
    expect(await local.records()).toEqual([]);
    expect(await local.bases()).toEqual([{ name: `user:ann/notes/${id(1)}`, version: 1 }]);
  });

  test("the transaction around it is aborted, even if the app catches the failure", async () => {
    await local.apply("user:ann", [note(id(1), 1, { title: "old" })]);
    const mend = await tear(store, failing);
    const caught = local.db.transaction("rw", local.notes, async () => {
      await local.notes.update(id(1), { title: "mine" }).catch(() => undefined);
    });
    await expect(caught).rejects.toThrow();
    mend();
    expect(await local.notes.get(id(1))).toMatchObject({ title: "old" });
    expect(await local.records()).toEqual([]);
  });

  test("the next write goes on as if nothing had been", async () => {
    await local.apply("user:ann", [note(id(1), 1, { title: "old" })]);
    const mend = await tear(store, failing);
    await local.notes.update(id(1), { title: "mine" }).catch(() => undefined);
    mend();
    await local.notes.update(id(1), { title: "again" });
    expect(await local.said()).toEqual([["patch", id(1), { title: "again" }]]);
  });
});

/** Whose replica this is, and the shape that its rows are kept in (SPEC 1 and 10). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { millisOf } from "../../src/protocol/clock.ts";
import { become, reshape } from "../../src/store/users.ts";
import { id, Local, note } from "../support/local.ts";
import { schema } from "../support/schema.ts";
import { refused } from "../support/service.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

async function switchTo(user: string): Promise<void> {
  await become(local.store, user);
  local.store.user = user;
}

describe("another user", () => {
  test("rows, watermark and outbox of the former user are gone, and the replica has another name", async () => {
    const before = await local.meta();
    await local.apply("user:ann", [note(id(1), 1)]);
    await local.notes.add({ title: "unsent" });
    await switchTo("bob");
    expect(await local.notes.count()).toBe(0);
    expect(await local.records()).toEqual([]);
    expect(await local.bases()).toEqual([]);
    expect(await local.replica.watermark()).toEqual({});
    expect(await local.meta()).toMatchObject({ user: "bob", synced: null });
    expect((await local.meta()).client).not.toBe(before.client);
  });

  test("what was not sent, and the dead letters, are there again when their user is back, on top of the rows (I25)", async () => {
    await local.notes.add({ id: id(1), title: "bad" });
    await local.answer({ [id(1)]: refused("rule") }, 0);
    await local.notes.add({ id: id(2), title: "unsent" });
    const [record] = await local.records();
    await switchTo("bob");
    expect(await local.letters.list()).toEqual([]);
    await local.notes.add({ id: id(3), title: "bob's" });
    await switchTo("ann");
    expect((await local.notes.toArray()).map(({ title }) => title)).toEqual(["unsent"]);
    expect((await local.records()).map(({ row, at, seq }) => [row, at, seq])).toEqual([
      [id(2), record?.at, record?.seq],
    ]);
    expect(await local.letters.list()).toMatchObject([{ row: id(1), code: "rule" }]);
    await switchTo("bob");
    expect((await local.records()).map(({ row }) => row)).toEqual([id(3)]);
  });

  test("what was applied and only awaited is not sent again by anybody", async () => {
    await local.notes.add({ title: "sent" });
    await local.answer({}, 5);
    await switchTo("bob");
    await switchTo("ann");
    expect(await local.records()).toEqual([]);
  });

  test("readings go on rising over a change of users: what was given to the transport stands (I3)", async () => {
    await local.notes.add({ title: "a" });
    await local.outbox.handOver(1);
    const before = (await local.records())[0]?.at ?? "";
    await switchTo("bob");
    local.time.now -= 60_000;
    await local.notes.add({ title: "b" });
    expect(((await local.records())[0]?.at ?? "") > before.slice(0, 17)).toBe(true);
    expect((await local.meta()).clock).toBe(before);
  });

  test("a clock that was wrong for one user does not hold up the next one's outbox (I6)", async () => {
    const { now } = local.time;
    local.time.now += 365 * 86_400_000;
    await local.notes.add({ title: "a" });
    local.time.now = now;
    await switchTo("bob");
    await local.notes.add({ title: "b" });
    expect(millisOf((await local.records())[0]?.at ?? "")).toBeLessThan(now + 60_000);
  });

  test("seqs are never given twice, whoever writes: a shelf may come back", async () => {
    await local.notes.add({ title: "a" });
    await switchTo("bob");
    await local.notes.add({ title: "b" });
    await switchTo("ann");
    await local.notes.add({ title: "c" });
    const seqs = (await local.records()).map(({ seq }) => seq);
    expect(new Set(seqs).size).toBe(2);
    expect(await local.db.table("sync_shelf").count()).toBe(1);
  });

  test("to become who one is changes nothing", async () => {
    await local.notes.add({ title: "a" });
    const before = await local.meta();
    await switchTo("ann");
    expect(await local.meta()).toEqual(before);
    expect(await local.records()).toHaveLength(1);
  });

  test("the first user of a device takes the replica as it is", async () => {
    const fresh = await Local.open({ user: null });
    const { client } = await fresh.meta();
    await become(fresh.store, "ann");
    expect(await fresh.meta()).toMatchObject({ client, user: "ann" });
    fresh.close();
  });
});

describe("another schema number", () => {
  test("rows take the shape that the app declares now, and pending edits are kept with their number (I25)", async () => {
    await local.apply("user:ann", [note(id(1), 1, { title: "old" }), note(id(2), 2)]);
    await local.notes.update(id(1), { body: "mine" });
    local.close();
    const { notes, ...others } = schema.declaration.entities;
    const { body, ...fields } = notes?.fields ?? {};
    const raised = {
      ...schema,
      declaration: {
        ...schema.declaration,
        schema: 4,
        entities: { ...others, notes: { ...notes, fields: { ...fields, icon: { type: "text", default: "*" } } } },
      },
    } as typeof schema;
    const after = await Local.open({ device: local.device, time: local.time, schema: raised });
    await reshape(after.store);
    const row = await after.notes.get(id(1));
    expect(row).toMatchObject({ title: "old", icon: "*" });
    expect(row).not.toHaveProperty("body");
    expect(await after.records()).toMatchObject([{ schema: 3, fields: { body: "mine" } }]);
    expect(await after.meta()).toMatchObject({ schema: 4, user: "ann" });
    await after.notes.update(id(2), { icon: "+" } as never);
    expect(await after.handOver(10)).toMatchObject([{ schema: 3 }]);
    after.close();
  });

  test("more rows than one slice are all brought into shape", async () => {
    await local.apply(
      "user:ann",
      Array.from({ length: 1_001 }, (_, at) => note(id(at), at + 1)),
    );
    await local.store.write([], async (inside) =>
      inside.put("sync_meta", [{ ...(await inside.replica()), schema: 2 }]),
    );
    await local.store.write(["notes"], async (inside) => {
      const rows = await inside.all<object>("notes");
      await inside.put(
        "notes",
        rows.map((row) => ({ ...row, stale: true })),
      );
    });
    await reshape(local.store);
    expect(await local.notes.filter((row) => "stale" in row).count()).toBe(0);
    expect(await local.notes.count()).toBe(1_001);
  });
});

/** Dead letters, and what the app may do about them (SPEC 4). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Result } from "../../src/generated/messages.ts";
import { reading } from "../../src/protocol/clock.ts";
import { gone, id, Local, note } from "../support/local.ts";
import { refused } from "../support/service.ts";

let local: Local;
beforeEach(async () => {
  local = await Local.open();
});
afterEach(() => local.close());

const ANN = "user:ann";

/** An edit that was rejected; its letter's seq. */
async function rejectedEdit(): Promise<number> {
  await local.apply(ANN, [note(id(1), 1)]);
  await local.notes.update(id(1), { title: "mine" });
  await local.answer({ [id(1)]: refused("rule") }, 0);
  return (await local.letters.list())[0]?.seq ?? 0;
}

describe("one letter", () => {
  test("a letter tells what it would have set and why it was not", async () => {
    const seq = await rejectedEdit();
    expect(await local.letters.list()).toEqual([
      {
        seq,
        op: "patch",
        scope: ANN,
        entity: "notes",
        row: id(1),
        fields: { title: "mine" },
        code: "rule",
        message: "it is rule",
        field: null,
        cause: null,
        parked: local.time.now,
      },
    ]);
  });

  test("retry writes it again as of now, under a new reading, and the letter is gone", async () => {
    const seq = await rejectedEdit();
    const spent = (await local.parked())[0]?.mutation.at ?? "";
    await local.letters.retry(seq);
    const [record] = await local.records();
    expect(record).toMatchObject({ op: "patch", row: id(1), fields: { title: "mine" } });
    expect((record?.at ?? "") > spent).toBe(true);
    expect(await local.letters.list()).toEqual([]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "mine" });
  });

  test("retry of an edit says what differs from the row of now", async () => {
    const seq = await rejectedEdit();
    await local.apply(ANN, [note(id(1), 2, { title: "mine", body: "theirs" })]);
    await local.letters.retry(seq);
    expect(await local.records()).toEqual([]);
    expect(await local.letters.list()).toEqual([]);
  });

  test("edit writes it with other values", async () => {
    const seq = await rejectedEdit();
    await local.letters.edit(seq, { title: "better", count: 2 });
    expect(await local.said()).toEqual([["patch", id(1), { title: "better", count: 2 }]]);
  });

  test("an edit that breaks a field is refused, and the letter stays", async () => {
    const seq = await rejectedEdit();
    await expect(local.letters.edit(seq, { title: 7 })).rejects.toMatchObject({ code: "invalid_field" });
    expect(await local.letters.list()).toHaveLength(1);
    expect(await local.records()).toEqual([]);
  });

  test("discard gives it up for good", async () => {
    const seq = await rejectedEdit();
    await local.letters.discard(seq);
    expect(await local.letters.list()).toEqual([]);
    expect(await local.notes.get(id(1))).toMatchObject({ title: "t" });
  });

  test("export is all letters as JSON", async () => {
    await rejectedEdit();
    expect(JSON.parse(await local.letters.export())).toEqual(await local.letters.list());
  });

  test("an edit of a row that is gone cannot be retried, and stays", async () => {
    const seq = await rejectedEdit();
    await local.apply(ANN, [gone("notes", id(1), 2)]);
    await expect(local.letters.retry(seq)).rejects.toMatchObject({ code: "row_gone" });
    expect(await local.letters.list()).toHaveLength(1);
  });

  test("a put whose row is visible meanwhile is retried as a patch", async () => {
    await local.notes.add({ id: id(1), title: "mine" });
    await local.answer({ [id(1)]: refused("rule") }, 0);
    await local.apply(ANN, [note(id(1), 1, { body: "theirs" })]);
    const [letter] = await local.letters.list();
    await local.letters.retry(letter?.seq ?? 0);
    expect((await local.said()).map(([op]) => op)).toEqual(["patch"]);
  });

  test("a delete is retried as a delete", async () => {
    await local.apply(ANN, [note(id(1), 1)]);
    await local.notes.delete(id(1));
    await local.answer({ [id(1)]: refused("ref_in_use") }, 0);
    expect(await local.notes.count()).toBe(1);
    const [letter] = await local.letters.list();
    await local.letters.retry(letter?.seq ?? 0);
    expect(await local.said()).toEqual([["delete", id(1), null]]);
  });

  test("a letter that is not there is refused as row_gone", async () => {
    await expect(local.letters.retry(99)).rejects.toMatchObject({ code: "row_gone" });
  });
});

describe("letters that belong together", () => {
  test("what was rejected itself belongs to the letter that it builds on: retried, repaired and given up with it", async () => {
    for (const deed of ["retry", "edit", "discard"] as const) {
      await local.notes.add({ id: id(1), title: "taken" });
      await local.notes.add({ id: id(2), title: "child", note_id: id(1) });
      await local.notes.update(id(1), { body: "more" });
      await local.notes.add({ id: id(3), title: "stranger" });
      const sent = await local.handOver(10);
      const codes = ["unique_violation", "ref_missing", "row_unknown", "rule"];
      const results = sent.map(({ seq }, at): Result => ({ seq, ...refused(codes[at] ?? "") }));
      const clock = reading(local.time.now, 0, "0".repeat(16));
      await local.outbox.settle(sent, { results, clock }, await local.meta(), null);
      const letters = await local.letters.list();
      const [first = 0, , , last = 0] = letters.map(({ seq }) => seq);
      expect(letters.map(({ code, message, cause }) => [code, message, cause])).toEqual(
        codes.map((code, at) => [code, `it is ${code}`, at === 1 || at === 2 ? first : null]),
      );
      if (deed === "edit") await local.letters.edit(first, { title: "free" });
      else await local.letters[deed](first);
      expect((await local.letters.list()).map(({ seq }) => seq)).toEqual([last]);
      const title = deed === "edit" ? "free" : "taken";
      const again = [
        ["put", id(1), expect.objectContaining({ title })],
        ["put", id(2), expect.objectContaining({ note_id: id(1) })],
        ["patch", id(1), { body: "more" }],
      ];
      expect(await local.said()).toEqual(deed === "discard" ? [] : again);
      await local.letters.discard(last);
      await local.answer({ [id(1)]: { status: "superseded" }, [id(2)]: { status: "superseded" } }, 0);
    }
  });

  test("a group is retried as one group", async () => {
    await local.db.transaction("rw", local.notes, () =>
      local.notes.bulkAdd([1, 2].map((at) => ({ id: id(at), title: "a" }))),
    );
    await local.answer({ [id(1)]: refused("group_rejected"), [id(2)]: refused("rule") }, 0);
    const [first] = await local.letters.list();
    await local.letters.retry(first?.seq ?? 0);
    const records = await local.records();
    expect(records.map(({ row }) => row)).toEqual([id(1), id(2)]);
    expect(records[0]?.group).toBeTruthy();
    expect(records[1]?.group).toBe(records[0]?.group);
    expect(await local.letters.list()).toEqual([]);
  });

  test("what builds on a letter is retried with it, each by itself, and discarded with it", async () => {
    for (const again of [true, false]) {
      await local.notes.add({ id: id(1), title: "parent" });
      await local.notes.add({ id: id(2), title: "child", note_id: id(1) });
      await local.answer({ [id(1)]: refused("rule"), [id(2)]: { status: "retry" } }, 0);
      const [first, second] = await local.letters.list();
      expect(second?.cause).toBe(first?.seq);
      if (again) {
        await local.letters.retry(first?.seq ?? 0);
        expect((await local.records()).map(({ row, group }) => [row, group])).toEqual([
          [id(1), null],
          [id(2), null],
        ]);
        await local.answer({}, 0);
        await local.apply(ANN, [], { from: 0, to: 9 });
      } else {
        await local.letters.discard(first?.seq ?? 0);
        expect(await local.records()).toEqual([]);
      }
      expect(await local.letters.list()).toEqual([]);
    }
  });
});

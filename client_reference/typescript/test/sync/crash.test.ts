/** A tab may be gone between any two steps: what it was told is written reaches the service, once (I25). */

import { afterEach, expect, test } from "vitest";
import { id } from "../support/local.ts";
import { refused } from "../support/service.ts";
import { type Tab, World } from "../support/tab.ts";
import { turn } from "../support/time.ts";

const ANN = "user:ann";
let world: World;
afterEach(() => world.end());

/** Writes and synchronisation, as an app does them; what was acknowledged before the tab was gone. */
async function session(tab: Tab, done: string[]): Promise<void> {
  const step = async (name: string, work: () => PromiseLike<unknown>) => {
    await work();
    if (tab.life.alive) done.push(name);
  };
  await step("add", () => tab.db.notes.add({ id: id(1), title: "a" }));
  await step("group", () =>
    tab.db.transaction("rw", tab.db.notes, () =>
      tab.db.notes.bulkAdd([2, 3].map((at) => ({ id: id(at), title: "g" }))),
    ),
  );
  await step("bad", () => tab.db.notes.add({ id: id(4), title: "bad" }));
  await step("sync", () => tab.db.synchronise());
  await step("edit", () => tab.db.notes.update(id(1), { body: "edited" }));
  await step("delete", () => tab.db.notes.delete(id(3)));
  await step("sync", () => tab.db.synchronise());
}

/** A world in which the session's tab is gone at a step; how many steps there were. */
async function crashing(fatal: number): Promise<{ tab: Tab; done: string[] }> {
  world = new World();
  world.service.judge = ({ fields }) => (fields?.title === "bad" ? refused("rule") : null);
  const tab = world.tab();
  tab.life.fatal = fatal;
  const done: string[] = [];
  const over = session(tab, done).catch((fault) => {
    if (tab.life.alive) throw fault;
  });
  const gone = (async () => {
    while (tab.life.alive) await turn();
    // What the service was asked it may still do.
    for (let at = 0; at < 20; at++) await turn();
  })();
  await Promise.race([over, gone]);
  return { tab, done };
}

test("a session without a crash has its effect, and has so many steps that crashes between them say something", async () => {
  const { tab, done } = await crashing(Number.POSITIVE_INFINITY);
  expect(done).toEqual(["add", "group", "bad", "sync", "edit", "delete", "sync"]);
  expect(tab.life.steps).toBeGreaterThan(30);
});

test("wherever a tab is gone, the next one finds all that was acknowledged, and the service gets it once (I25)", async () => {
  const { tab: whole } = await crashing(Number.POSITIVE_INFINITY);
  const { steps } = whole.life;
  world.end();
  for (let fatal = 1; fatal <= steps; fatal++) {
    const { tab, done } = await crashing(fatal);
    const again = world.tab({ device: tab.device });
    await again.db.synchronise();
    const where = `gone at step ${fatal}, having done ${done}`;
    const rows = world.service.rows(ANN);
    const shown = new Map((await again.db.notes.toArray()).map((row) => [`notes/${row.id}`, row]));
    expect([...shown.keys()].sort(), where).toEqual([...rows.keys()].sort());
    for (const [name, row] of shown) expect(rows.get(name), where).toMatchObject({ title: row.title, body: row.body });
    expect(
      (await again.outbox()).map(({ seq }) => seq),
      where,
    ).toEqual([]);
    for (const { computed, told } of Object.values(await again.db.verify())) expect(computed, where).toBe(told);
    expect(Math.max(0, ...world.service.effects.values()), where).toBeLessThanOrEqual(1);
    if (done.includes("add")) expect(rows.has(`notes/${id(1)}`), where).toBe(true);
    expect(rows.has(`notes/${id(2)}`), where).toBe(rows.has(`notes/${id(3)}`) || done.includes("edit"));
    if (done.includes("group")) expect(rows.has(`notes/${id(2)}`), where).toBe(true);
    if (done.includes("bad")) expect(await again.db.rejected.list(), where).toMatchObject([{ row: id(4) }]);
    if (done.includes("edit")) expect(rows.get(`notes/${id(1)}`), where).toMatchObject({ body: "edited" });
    if (done.includes("delete")) expect(rows.has(`notes/${id(3)}`), where).toBe(false);
    world.end();
  }
}, 60_000);

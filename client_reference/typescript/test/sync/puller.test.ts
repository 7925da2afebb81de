/** Pulls: what is asked for, what is taken in, and what interruptions cost (SPEC 5). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Run } from "../../src/generated/messages.ts";
import { reading } from "../../src/protocol/clock.ts";
import { id } from "../support/local.ts";
import { schema } from "../support/schema.ts";
import { type Asked, json, ndjson, page, problem } from "../support/script.ts";
import { type Tab, World } from "../support/tab.ts";
import { START } from "../support/time.ts";

let world: World;
let tab: Tab;
beforeEach(async () => {
  world = new World();
  tab = world.tab();
  await tab.db.open();
});
afterEach(() => world.end());

const ANN = "user:ann";
const titles = async () => (await tab.db.notes.orderBy("id").toArray()).map(({ title }) => title);
const theirs = (number: number, title: string) =>
  world.service.write(ANN, "put", "notes", id(number), { title, labels: {} });
/** What the service would say, as lines. */
const linesOf = ({ user, body }: Asked) => {
  const { runs, trailer } = world.service.pull(user, body as never);
  return { runs, trailer };
};

describe("what is asked for", () => {
  test("the first pull names no watermark, and the next ones what is held", async () => {
    theirs(1, "a");
    await tab.db.synchronise();
    await tab.db.synchronise();
    const { client } = await tab.replica();
    expect(world.script.pulls[0]).toEqual({ client, schema: 3, watermark: {}, scopes: null, limit: 1_000 });
    expect(world.script.pulls.at(-1)).toMatchObject({ watermark: { [ANN]: "epoch.1.0.3" } });
    expect(world.script.to("/sync/pull").every(({ accept }) => accept === "application/x-ndjson")).toBe(true);
  });

  test("a replica that is narrowed asks for its scopes alone", async () => {
    world.service.members = { ann: ["workspace:1", "workspace:2"] };
    world.service.write("workspace:1", "put", "tasks", id(1), { title: "a" });
    world.service.write("workspace:2", "put", "tasks", id(2), { title: "b" });
    const narrow = world.tab({ scopes: ["workspace:2"] });
    await narrow.db.synchronise();
    expect(world.script.pulls.at(-1)).toMatchObject({ scopes: ["workspace:2"] });
    expect((await narrow.db.tasks.toArray()).map(({ title }) => title)).toEqual(["b"]);
  });
});

describe("what is not asked for", () => {
  test("what was applied in a scope that a narrowed replica leaves out is not awaited for ever", async () => {
    world.service.members = { ann: ["workspace:7"] };
    const narrow = world.tab({ scopes: ["workspace:7"] });
    await narrow.db.synchronise();
    await narrow.db.notes.add({ title: "a" });
    await narrow.db.synchronise();
    expect(await narrow.outbox()).toEqual([]);
    expect(await narrow.db.notes.count()).toBe(0);
    expect(world.service.rows(ANN).size).toBe(1);
  });
});

test("of a replica that is narrowed the other scopes' rows go, and what was not sent there is sent all the same (I25)", async () => {
  world.service.members = { ann: ["workspace:7", "workspace:8"] };
  for (const scope of [7, 8]) world.service.write(`workspace:${scope}`, "put", "tasks", id(scope), { title: "theirs" });
  await tab.db.synchronise();
  await tab.db.tasks.add({ id: id(9), workspace_id: "8", title: "mine" });
  tab.db.close();
  const narrow = world.tab({ device: tab.device, scopes: [ANN, "workspace:7"] });
  world.service.write("workspace:8", "delete", "tasks", id(8));
  await narrow.db.synchronise();
  expect((await narrow.db.tasks.toArray()).map(({ workspace_id }) => workspace_id)).toEqual(["7"]);
  expect(Object.keys(await narrow.db.verify())).toEqual([ANN, "workspace:7"]);
  expect(await narrow.db.rejected.list()).toEqual([]);
  expect(world.service.rows("workspace:8").size).toBe(1);
});

describe("what is taken in", () => {
  test("more than one page is taken in page by page, and the digest at the end is the service's (I32)", async () => {
    for (let at = 0; at < 1_200; at++) theirs(at, "a");
    await tab.db.synchronise();
    expect(await tab.db.notes.count()).toBe(1_200);
    expect(await tab.db.verify()).toEqual({
      [ANN]: { computed: world.service.digest(ANN), told: world.service.digest(ANN), version: 1_200 },
    });
    expect(tab.reports).toEqual([]);
  });

  test("progress of the first synchronisation is told, and ends", async () => {
    for (let at = 0; at < 1_200; at++) theirs(at, "a");
    const told: (number | undefined)[] = [];
    tab.db.status.subscribe(() => told.push(tab.db.status.value.firstSync?.done));
    await tab.db.synchronise();
    expect(told).toContain(1_000);
    expect(tab.db.status.value.firstSync).toBeNull();
  });

  test("when everything was taken in is kept, and told after a reopening", async () => {
    await tab.db.synchronise();
    expect(tab.db.status.value.lastSync).toBe(START);
    tab.db.close();
    world.time.pass(1_000);
    const again = world.tab({ device: tab.device });
    await again.db.open();
    expect(again.db.status.value.lastSync).toBe(START);
  });

  test("a scope that may not be read any more goes, with its unsent mutations among the dead letters", async () => {
    world.service.members = { ann: ["workspace:1"] };
    world.service.write("workspace:1", "put", "tasks", id(1), { title: "a" });
    await tab.db.synchronise();
    await tab.db.tasks.update(id(1), { title: "mine" });
    world.service.members = {};
    await tab.db.synchronise();
    expect(world.script.pushes).toEqual([]);
    expect(await tab.db.tasks.count()).toBe(0);
    expect(await tab.db.rejected.list()).toMatchObject([{ code: "revoked", scope: "workspace:1" }]);
    expect(await tab.outbox()).toEqual([]);
    expect((await tab.scopes()).map(({ scope }) => scope)).toEqual([ANN]);
  });

  test("another epoch replaces everything and keeps the outbox on top (I30)", async () => {
    theirs(1, "old");
    await tab.db.synchronise();
    await tab.db.notes.add({ id: id(9), title: "mine" });
    world.service.renew("other", [ANN]);
    theirs(2, "new");
    world.script.answers.push.push(problem(503, "unavailable"));
    await expect(tab.db.synchronise()).rejects.toThrow();
    expect(await titles()).toEqual(["new", "mine"]);
    await tab.db.synchronise();
    expect([...world.service.rows(ANN).keys()]).toHaveLength(2);
    expect(await tab.outbox()).toEqual([]);
  });

  test("an answer to a push from before a reset is awaited by nobody", async () => {
    theirs(1, "a");
    await tab.db.synchronise();
    await tab.db.notes.update(id(1), { title: "mine" });
    await tab.db.synchronise();
    world.service.renew("other", [ANN]);
    await tab.db.synchronise();
    expect(await tab.outbox()).toEqual([]);
    expect(await titles()).toEqual([]);
  });
});

describe("what goes wrong", () => {
  test("a reset that is cut off takes no row from the screen, and the rest comes with the next pull", async () => {
    for (let row = 0; row < 1_500; row++) theirs(row, "a");
    await tab.db.synchronise();
    tab.db.close();
    const raised = { ...schema, declaration: { ...schema.declaration, schema: 4 } };
    const after = world.tab({ device: tab.device, schema: raised });
    world.service.write(ANN, "delete", "notes", id(0));
    world.script.answers.pull.push((asked) => ndjson(linesOf(asked).runs.slice(0, 1)));
    await expect(after.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await after.db.notes.count()).toBe(1_500);
    await after.db.synchronise();
    expect(await after.db.notes.count()).toBe(1_499);
    const [proof] = Object.values(await after.db.verify());
    expect(proof?.computed).toBe(proof?.told);
  });

  test("a body without its last line was cut off; what had come is kept", async () => {
    theirs(1, "a");
    world.script.answers.pull.push((asked) => ndjson(linesOf(asked).runs));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await titles()).toEqual(["a"]);
    expect(tab.db.status.value.lastSync).toBeNull();
  });

  test("a body that breaks within a line keeps the lines before it", async () => {
    theirs(1, "a");
    world.script.answers.pull.push((asked) => {
      const text = `${JSON.stringify(linesOf(asked).runs[0])}\n{"scope": "user:`;
      return new Response(text, { headers: { "Content-Type": "application/x-ndjson" } });
    });
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await titles()).toEqual(["a"]);
  });

  test("a connection that breaks within a body keeps what had come", async () => {
    theirs(1, "a");
    world.script.answers.pull.push((asked) => {
      const first = `${JSON.stringify(linesOf(asked).runs[0])}\n`;
      let pulls = 0;
      const body = new ReadableStream({
        pull(controller) {
          if (pulls++ === 0) controller.enqueue(new TextEncoder().encode(first));
          else controller.error(new TypeError("terminated"));
        },
      });
      return new Response(body, { headers: { "Content-Type": "application/x-ndjson" } });
    });
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await titles()).toEqual(["a"]);
  });

  test.each([200, 502])("a proxy's page with %i is temporary", async (status) => {
    world.script.answers.pull.push(page(status));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    await tab.db.synchronise();
  });

  test("a wrong digest is reported, and the scope is pulled anew at once (I32)", async () => {
    theirs(1, "a");
    theirs(2, "b");
    world.script.answers.pull.push((asked) => {
      const { runs, trailer } = linesOf(asked);
      const [run] = runs as [Run];
      return ndjson([{ ...run, changes: run.changes.slice(1) }, trailer]);
    });
    await tab.db.synchronise();
    expect(await titles()).toEqual(["a", "b"]);
    expect(tab.reports).toMatchObject([{ code: "digest" }]);
    expect((await tab.db.verify())[ANN]).toMatchObject({ computed: world.service.digest(ANN) });
  });

  test("a digest that stays wrong is a failure for now, not a loop", async () => {
    theirs(1, "a");
    for (let at = 0; at < 3; at++) {
      world.script.answers.pull.push((asked) => {
        const { runs, trailer } = linesOf(asked);
        return ndjson([...runs.map((run) => ({ ...run, digest: "7-000000000000" })), trailer]);
      });
    }
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(world.script.pulls).toHaveLength(2);
  });

  test("a row that was emptied from the disk shows in verify", async () => {
    theirs(1, "a");
    await tab.db.synchronise();
    await tab.db.table("sync_base").clear();
    const found = await tab.db.verify();
    expect(found[ANN]?.computed).not.toBe(found[ANN]?.told);
  });
});

describe("clocks", () => {
  test("a write after a pull is later than everything that the pull brought (I4)", async () => {
    world.service.ahead = 30_000;
    theirs(1, "a");
    world.service.ahead = 0;
    world.script.answers.time.push(() =>
      json({ clock: reading(START, 0, "0".repeat(16)), time: "2027-01-15T08:00:00.000000Z" }),
    );
    await tab.db.synchronise();
    await tab.db.notes.update(id(1), { title: "mine" });
    await tab.db.synchronise();
    expect([...world.service.rows(ANN).values()].map(({ title }) => title)).toEqual(["mine"]);
  });
});

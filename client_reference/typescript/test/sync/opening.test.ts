/** Opening the database: whose it is, what it outlives, and apps of several versions (SPEC 1, 8 and 10). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Device } from "../support/device.ts";
import { id } from "../support/local.ts";
import { schema } from "../support/schema.ts";
import { held } from "../support/script.ts";
import { refused } from "../support/service.ts";
import { World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => world.end());

const ANN = "user:ann";
const raised = { ...schema, declaration: { ...schema.declaration, schema: 4 } };
const { tasks, ...others } = schema.declaration.entities;
const entities = {
  ...others,
  tasks: { ...tasks, fields: { ...tasks?.fields, due: { type: "text", nullable: true } } },
};
const newer = { ...raised, declaration: { ...raised.declaration, entities } } as typeof schema;

describe("whose it is", () => {
  test("the first write on a device waits until it is known whose it is", async () => {
    const tab = world.tab();
    await tab.db.notes.add({ title: "a" });
    expect(await tab.outbox()).toMatchObject([{ scope: ANN }]);
    expect(tab.db.status.value.user).toBe("ann");
  });

  test("an app that never says who it is holds up the opening for a while only", async () => {
    const tab = world.tab({ fetchToken: () => new Promise(() => undefined), signInPatience: 3_000 });
    const opening = tab.db.open();
    let open = false;
    void opening.then(() => {
      open = true;
    });
    await quiet();
    expect(open).toBe(false);
    world.time.pass(3_000);
    await opening;
    await expect(tab.db.notes.add({ title: "a" })).rejects.toMatchObject({ code: "needs_auth" });
  });

  test("told who is signed in, it opens without a row of whoever was here before, and keeps their outbox (I25)", async () => {
    const first = world.tab();
    await first.db.notes.add({ title: "ann's" });
    first.db.close();
    world.script.online = false;
    const bobs = world.tab({ device: first.device, told: "bob" });
    expect(await bobs.db.notes.toArray()).toEqual([]);
    expect(bobs.db.status.value.user).toBe("bob");
    bobs.db.close();
    const anns = world.tab({ device: first.device, told: "ann" });
    expect(await anns.db.notes.toArray()).toMatchObject([{ title: "ann's" }]);
    expect(await anns.outbox()).toHaveLength(1);
  });

  test("a device that knows its user opens without asking anybody, and works offline (I25)", async () => {
    const first = world.tab();
    await first.db.notes.add({ id: id(1), title: "a" });
    first.db.close();
    world.script.online = false;
    const again = world.tab({ device: first.device, fetchToken: () => Promise.reject(new Error("offline")) });
    await again.db.notes.update(id(1), { title: "b" });
    expect(await again.outbox()).toHaveLength(2);
    expect(await again.db.notes.toArray()).toMatchObject([{ title: "b" }]);
  });

  test("an answer that was asked for as a former user is nothing to the next one's tables", async () => {
    world.service.write(ANN, "put", "notes", id(1), { title: "ann's", labels: {} });
    const tab = world.tab();
    await tab.db.open();
    const { answer, release, asked } = held(world.script.model);
    world.script.answers.pull.push(answer);
    const late = tab.db.synchronise().catch((fault: unknown) => fault);
    await asked;
    const other = world.tab({ device: tab.device, user: "bob" });
    await other.db.synchronise();
    release();
    await late;
    expect(await other.db.notes.count()).toBe(0);
    expect((await other.scopes()).map(({ scope }) => scope)).toEqual(["user:bob"]);
  });
});

describe("what it outlives", () => {
  test("a database that was emptied from outside is reported and fetched anew", async () => {
    world.service.write(ANN, "put", "notes", id(1), { title: "a", labels: {} });
    const tab = world.tab();
    await tab.db.synchronise();
    tab.db.close();
    await new Promise((resolve) => {
      tab.device.databases.deleteDatabase(tab.device.name).onsuccess = resolve;
    });
    const again = world.tab({ device: tab.device });
    await again.db.synchronise();
    expect(again.reports).toMatchObject([{ code: "storage_lost" }]);
    expect(await again.db.notes.count()).toBe(1);
    expect((await again.replica()).client).not.toBe(world.script.pulls[0]?.client);
  });

  test("closed by Dexie itself, to open again, it goes on synchronising", async () => {
    const tab = await world.live();
    tab.db.close({ disableAutoOpen: false });
    await quiet();
    await tab.db.notes.add({ title: "a" });
    await world.pass(5_000);
    expect(world.service.rows(ANN).size).toBe(1);
  });

  test("a page that was put aside and comes back connects again", async () => {
    const target = new EventTarget();
    const tab = await world.live({ around: { window: target as unknown as Window } });
    const say = (name: string) => target.dispatchEvent(Object.assign(new Event(name), { persisted: true }));
    // As Dexie's own listener does.
    tab.db.close({ disableAutoOpen: false });
    say("pagehide");
    await quiet();
    say("pageshow");
    await (await world.script.connection(2)).welcome();
    await tab.stands("live");
  });

  test("when it last held everything is told again after an opening without a network", async () => {
    const tab = world.tab();
    await tab.db.synchronise();
    const { lastSync, offset } = tab.db.status.value;
    tab.db.close();
    world.script.online = false;
    const after = world.tab({ device: tab.device, start: true });
    await until(() => after.db.status.value.problem !== null);
    expect(lastSync).not.toBeNull();
    expect(after.db.status.value).toMatchObject({ lastSync, offset });
  });

  test("a page whose storage beside the database is full opens all the same", async () => {
    const full = () => {
      throw new DOMException("full", "QuotaExceededError");
    };
    const storage = { getItem: () => null, removeItem: () => undefined, setItem: full };
    const tab = await world.live({ around: { storage } });
    expect(tab.reports).toEqual([]);
  });

  test("a database that does not open is tried again after a while, not at once", async () => {
    const device = new Device();
    const open = device.databases.open.bind(device.databases);
    let tries = 0;
    device.databases.open = () => {
      tries += 1;
      throw new DOMException("Internal error opening backing store", "UnknownError");
    };
    const tab = world.tab({ device, start: true });
    await quiet(300);
    expect(tries).toBeLessThan(5);
    expect(tab.reports).toHaveLength(1);
    device.databases.open = open;
    world.time.pass(10_000);
    await (await world.script.connection(1)).welcome();
    await tab.stands("live");
  });

  test("a database that was deleted can be synchronised again", async () => {
    const tab = await world.live();
    await tab.db.delete();
    tab.db.resume();
    await (await world.script.connection(2)).welcome();
    await tab.stands("live");
    expect(tab.reports).toEqual([]);
  });

  test("the replica keeps its name over reopenings, and draws another node", async () => {
    const device = new Device();
    const nodes = new Set<string>();
    const clients = new Set<string>();
    for (const title of ["a", "b"]) {
      const tab = world.tab({ device });
      await tab.db.notes.add({ title });
      for (const { at } of await tab.outbox()) nodes.add(at.slice(18));
      clients.add((await tab.replica()).client);
      tab.db.close();
    }
    expect(clients.size).toBe(1);
    expect(nodes.size).toBe(2);
  });
});

describe("versions of the app", () => {
  test("an app that has risen sends what was written before under the number it was written with (I25, I51)", async () => {
    const tab = world.tab();
    await tab.db.notes.add({ id: id(1), title: "old" });
    tab.db.close();
    const after = world.tab({ device: tab.device, schema: raised });
    await after.db.notes.add({ id: id(2), title: "new" });
    await after.db.synchronise();
    expect(world.script.pushes.map(({ schema, mutations }) => [schema, mutations.map(({ row }) => row)])).toEqual([
      [3, [id(1)]],
      [4, [id(2)]],
    ]);
    expect(await after.outbox()).toEqual([]);
  });

  test("an app that has risen shows its rows before the pull has brought them anew", async () => {
    world.service.write(ANN, "put", "notes", id(1), { title: "a", labels: {} });
    const tab = world.tab();
    await tab.db.synchronise();
    tab.db.close();
    world.script.online = false;
    const after = world.tab({ device: tab.device, schema: raised });
    expect(await after.db.notes.toArray()).toMatchObject([{ title: "a" }]);
    world.script.online = true;
    await after.db.synchronise();
    expect(world.script.pulls.at(-1)).toMatchObject({ schema: 4 });
    expect((await after.scopes())[0]?.watermark).toBe("epoch.1.0.4");
  });

  test("an older app's answer that comes late takes nothing away that a newer one has fetched (I51)", async () => {
    world.service.members = { ann: ["workspace:7"] };
    world.service.write("workspace:7", "put", "tasks", id(1), { title: "t", task_id: null, due: "soon" });
    const old = world.tab();
    await old.db.synchronise();
    await old.db.tasks.update(id(1), { title: "mine" });
    world.service.judge = () => refused("rule");
    const push = held(world.script.model);
    world.script.answers.push.push(push.answer);
    const late = old.db.synchronise();
    await push.asked;
    const young = world.tab({ device: old.device, schema: newer });
    const fetched = young.db.synchronise();
    await until(async () => (await young.scopes()).some(({ watermark }) => watermark?.endsWith(".4")));
    push.release();
    await expect(late).rejects.toMatchObject({ code: "schema_mismatch" });
    await fetched;
    expect(await young.db.tasks.get(id(1))).toMatchObject({ title: "t", due: "soon" });
    expect(await young.letters()).toHaveLength(1);
  });

  test("an older app does not open as another user: it could not clear the tables that it does not know (I33)", async () => {
    const device = new Device();
    const ann = world.tab({ device, schema: newer, told: "ann" });
    await ann.db.tasks.add({ workspace_id: "7", title: "ann's" });
    ann.db.close();
    const old = world.tab({ device, user: "bob", told: "bob", start: true });
    await old.stands("needs-upgrade");
    await expect(old.db.notes.count()).rejects.toThrow("newer version");
    expect(await world.tab({ device, schema: newer, told: "ann" }).db.tasks.count()).toBe(1);
  });

  test("a tab of an older app takes nothing away that a newer one has fetched (I51)", async () => {
    world.service.members = { ann: ["workspace:7"] };
    world.service.write("workspace:7", "put", "tasks", id(1), { title: "t", task_id: null, due: "soon" });
    const old = world.tab();
    await old.db.synchronise();
    const young = world.tab({ device: old.device, schema: newer });
    await young.db.synchronise();
    expect(await old.db.tasks.get(id(1))).toMatchObject({ title: "t" });
    await quiet();
    expect(await young.db.tasks.get(id(1))).toMatchObject({ due: "soon" });
    expect(await young.replica()).toMatchObject({ schema: 4 });
  });

  test("a table in which the app writes without waiting keeps the order of its writes", async () => {
    const tab = world.tab();
    await tab.db.transaction("rw", tab.db.notes, () => {
      void tab.db.notes.add({ id: id(1), title: "a" });
      void tab.db.notes.update(id(1), { title: "b" });
      void tab.db.notes.put({ id: id(1), title: "c" });
      void tab.db.notes.delete(id(1));
    });
    expect((await tab.outbox()).map(({ op }) => op)).toEqual(["put", "patch", "patch", "delete"]);
    await tab.db.synchronise();
    await until(async () => (await tab.outbox()).length === 0);
    expect(world.service.rows(ANN).size).toBe(0);
  });
});

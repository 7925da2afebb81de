/** Several tabs of one device: one synchronises, all write, and none is missed when it goes. */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Device } from "../support/device.ts";
import { id } from "../support/local.ts";
import { held, problem, type ScriptedSocket } from "../support/script.ts";
import { type Tab, World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

let world: World;
let device: Device;
let one: Tab;
let two: Tab;
beforeEach(async () => {
  world = new World();
  device = new Device();
  one = await world.live({ device });
  two = world.tab({ device, start: true });
  await two.stands("live");
});
afterEach(() => world.end());

const ANN = "user:ann";
const rows = () => world.service.rows(ANN).size;
const last = () => world.script.sockets.at(-1) as ScriptedSocket;

describe("who leads", () => {
  test("one of several tabs synchronises, and all of them tell how it stands", async () => {
    await quiet();
    expect(world.script.sockets).toHaveLength(1);
    expect(one.db.status.value).toMatchObject({ leader: true, connection: "live" });
    expect(two.db.status.value).toMatchObject({ leader: false, connection: "live" });
  });

  test("what any tab writes the leader sends, in the order of their readings", async () => {
    await two.db.notes.add({ id: id(1), title: "a" });
    await one.db.notes.add({ id: id(2), title: "b" });
    await two.db.notes.update(id(1), { body: "c" });
    await two.settled().catch(() => undefined);
    await until(
      () => rows() === 2 && world.script.sent.length === 3,
      () => world.time.pass(5),
    );
    const readings = world.script.sent.map(({ at }) => at);
    expect(readings).toEqual([...readings].sort());
    expect(world.script.pushes.every(({ client }) => client === world.script.pushes[0]?.client)).toBe(true);
  });

  test("when the leader closes another tab takes over, with nothing lost", async () => {
    one.db.close();
    await (await world.script.connection(2)).welcome();
    await until(() => two.db.status.value.leader);
    await two.db.notes.add({ title: "a" });
    await two.settled();
    expect(rows()).toBe(1);
  });

  test("when the leader is gone without a word another tab takes over, and sends what it had not (I25)", async () => {
    world.script.answers.push.push(() => new Promise(() => undefined));
    await one.db.notes.add({ title: "a" });
    await until(
      () => world.script.pushes.length === 1,
      () => world.time.pass(5),
    );
    one.crash();
    await (await world.script.connection(2)).welcome();
    await two.settled();
    expect(rows()).toBe(1);
    expect([...world.service.effects.values()]).toEqual([1]);
  });

  test("a leader that is frozen, and answers nothing, loses its office", async () => {
    one.life.frozen = true;
    await until(
      () => two.db.status.value.leader,
      () => world.time.pass(100),
    );
    await (await world.script.connection(2)).welcome();
    await two.db.notes.add({ title: "a" });
    await two.settled();
    expect(rows()).toBe(1);
  });

  test("a leader that answers keeps its office, however long nothing happens", async () => {
    for (let at = 0; at < 60; at++) {
      world.time.pass(1_000);
      last().say({ t: "pong", clock: world.service.clock() });
      await quiet(4);
    }
    expect(one.db.status.value.leader).toBe(true);
    expect(two.db.status.value.leader).toBe(false);
    expect(world.script.sockets).toHaveLength(1);
  });

  test("a frozen tab that wakes follows the one that took over", async () => {
    one.life.frozen = true;
    await until(
      () => two.db.status.value.leader,
      () => world.time.pass(100),
    );
    await (await world.script.connection(2)).welcome();
    one.life.frozen = false;
    await until(() => !one.db.status.value.leader);
    await one.db.notes.add({ title: "a" });
    await two.settled();
    expect(rows()).toBe(1);
  });

  test("a leader that pauses hands over", async () => {
    one.db.pause();
    await until(() => two.db.status.value.leader);
    await (await world.script.connection(2)).welcome();
    expect(one.db.status.value.leader).toBe(false);
  });
});

describe("what tabs see of each other", () => {
  test("a tab that does not lead synchronises when it is told to, by the leader", async () => {
    await two.db.notes.add({ title: "a" });
    await two.db.synchronise();
    expect(rows()).toBe(1);
    expect(world.script.sockets).toHaveLength(1);
  });

  test("what a tab writes that has never begun to synchronise, the leader sends", async () => {
    const three = world.tab({ device });
    // Nothing is due any more: the write alone gives cause to send.
    await world.pass(2_000);
    await three.db.notes.add({ title: "a" });
    await world.pass(1_000);
    expect(rows()).toBe(1);
  });

  test("a synchronise() in a tab that does not lead leaves all of them live", async () => {
    const three = world.tab({ device, start: true });
    await three.stands("live");
    await two.db.synchronise();
    await quiet();
    for (const { db } of [one, two, three]) {
      expect(db.status.value).toMatchObject({ connection: "live", session: one.db.status.value.session });
    }
  });

  test("a tab that rests says so, whatever the leader does", async () => {
    two.db.pause();
    await quiet();
    expect(two.db.status.value.connection).toBe("paused");
    one.db.pause();
    await quiet();
    one.db.resume();
    // It is not live before it is.
    expect(one.db.status.value.connection).not.toBe("live");
    one.db.close();
    await world.pass(30_000);
    expect(two.db.status.value.connection).toBe("paused");
  });

  test("one push is in flight at a time, whichever tab it is of", async () => {
    const push = held(world.script.model);
    world.script.answers.push.push(push.answer);
    await one.db.notes.add({ title: "a" });
    await until(
      () => world.script.pushes.length === 1,
      () => world.time.pass(5),
    );
    const other = two.db.synchronise();
    await quiet(200);
    expect(world.script.pushes).toHaveLength(1);
    push.release();
    await other;
    expect([...world.service.effects.values()]).toEqual([1]);
  });

  test("what stands in the leader's way is what the tab that asked is told", async () => {
    world.script.answers.push.push(...[1, 2, 3].map(() => problem(503, "unavailable")));
    await two.db.notes.add({ title: "a" });
    await expect(two.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
  });

  test("all tabs count the same outbox", async () => {
    world.script.online = false;
    await two.db.notes.add({ title: "a" });
    await until(() => one.db.status.value.pending === 1 && two.db.status.value.pending === 1);
  });

  test("a sign-in that one tab is told of changes the user of all, and writes of neither go astray", async () => {
    await one.db.notes.add({ title: "ann's" });
    await until(
      () => rows() === 1,
      () => world.time.pass(5),
    );
    one.user = "bob";
    two.user = "bob";
    two.db.signedIn();
    await (await world.script.connection(2)).welcome();
    await until(() => one.db.status.value.user === "bob" && two.db.status.value.user === "bob");
    expect(await two.db.notes.count()).toBe(0);
    await two.db.notes.add({ title: "bob's" });
    await until(
      () => world.service.rows("user:bob").size === 1,
      () => world.time.pass(5),
    );
    expect(rows()).toBe(1);
  });

  test("without locks every tab synchronises, and each write still has its effect once", async () => {
    const alone = new Device();
    const around = { locks: null };
    const three = await world.live({ device: alone, around });
    const four = await world.live({ device: alone, around });
    await three.db.notes.add({ title: "a" });
    await four.db.notes.add({ title: "b" });
    await until(
      () => rows() === 2,
      () => world.time.pass(5),
    );
    await until(() => three.db.status.value.pending === 0 && four.db.status.value.pending === 0);
    expect(new Set(world.service.effects.values())).toEqual(new Set([1]));
  });
});

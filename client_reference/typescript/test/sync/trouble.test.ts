/** What hangs, throws or is forbidden: none of it ends synchronisation for good. */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Device } from "../support/device.ts";
import { held, problem, token } from "../support/script.ts";
import { World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

let world: World;
beforeEach(() => {
  world = new World();
  const { model } = world.script;
  // Polls are held for ever: nothing is new.
  world.script.model = (asked) => (asked.body.wait ? new Promise(() => undefined) : model(asked));
});
afterEach(() => {
  vi.restoreAllMocks();
  world.end();
});

const rows = () => world.service.rows("user:ann").size;
const never = () => new Promise<never>(() => undefined);

/** A page that can be told of focus and network. */
function page(): { around: { window: Window }; say: (event: string) => void } {
  const target = new EventTarget();
  return {
    around: { window: target as unknown as Window },
    say: (event) => void target.dispatchEvent(new Event(event)),
  };
}

describe("what hangs", () => {
  test("a websocket that never opens leads to polling", async () => {
    world.tab({ start: true });
    await world.script.connection(1);
    await world.pass(120_000);
    expect(world.script.pulls.some(({ wait }) => wait)).toBe(true);
  });

  test("a fetchToken that hung once is asked again", async () => {
    let hangs = false;
    const tab = await world.live({ fetchToken: () => (hangs ? never() : Promise.resolve(token("ann"))) });
    hangs = true;
    tab.db.signedIn();
    await quiet();
    hangs = false;
    await world.pass(100_000);
    expect(world.script.sockets.length).toBeGreaterThan(1);
  });

  test("a network that comes back while a request hangs is used at once", async () => {
    const { around, say } = page();
    await world.live({ around });
    const time = held(world.script.model);
    world.script.answers.time.push(time.answer);
    world.script.sockets[0]?.end(1006);
    await world.pass(3_000);
    await time.asked;
    say("offline");
    say("online");
    await world.pass(5_000);
    expect(world.script.sockets.length).toBeGreaterThan(1);
  });
});

describe("what throws", () => {
  test("a listener of the app's that throws does not stop synchronisation", async () => {
    const thrown = vi.spyOn(console, "error").mockImplementation(() => undefined);
    const tab = world.tab();
    tab.db.status.subscribe(() => {
      if (tab.db.status.value.connection !== "paused") throw new Error("the app's");
    });
    tab.db.resume();
    await world.script.connection(1);
    expect(thrown).toHaveBeenCalled();
  });

  test("a websocket that cannot be made is a lost connection", async () => {
    let tries = 0;
    const socket = () => {
      tries += 1;
      throw new DOMException("not from here", "SecurityError");
    };
    world.tab({ start: true, around: { socket } });
    await world.pass(120_000);
    expect(tries).toBeGreaterThan(2);
  });
});

describe("what is forbidden", () => {
  test("where locks are forbidden a tab synchronises all the same", async () => {
    const request = () => Promise.reject(new DOMException("not from here", "SecurityError"));
    const tab = await world.live({ around: { locks: { request } as unknown as LockManager } });
    await tab.db.notes.add({ title: "a" });
    await world.pass(1_000);
    expect(rows()).toBe(1);
  });

  test("after a refusal while connecting somebody who looks makes it begin anew", async () => {
    const { around, say } = page();
    const tab = await world.live({ around });
    const time = held(world.script.model);
    world.script.answers.time.push(time.answer);
    world.script.sockets[0]?.end(1006);
    await world.pass(3_000);
    await time.asked;
    world.script.answers.push.push(problem(403, "forbidden"));
    await tab.db.notes.add({ title: "a" });
    await world.pass(1_000);
    expect(tab.db.status.value.connection).toBe("refused");
    time.release();
    await quiet();
    say("focus");
    await world.script.connection(2);
  });
});

describe("pushes", () => {
  test("pulls that fail do not hold up what waits from before (I25)", async () => {
    const device = new Device();
    const before = world.tab({ device });
    await before.db.notes.add({ title: "a" });
    before.db.close();
    for (let at = 0; at < 50; at++) world.script.answers.pull.push(problem(500, "internal"));
    world.tab({ device, start: true });
    await world.pass(60_000);
    expect(rows()).toBe(1);
  });

  test("what stood in the way is not told any more once something has gone out", async () => {
    const tab = await world.live();
    world.script.answers.push.push(problem(503, "unavailable"));
    await tab.db.notes.add({ title: "a" });
    await until(
      () => tab.db.status.value.problem?.code === "unavailable",
      () => world.time.pass(5),
    );
    await world.pass(2_000);
    expect(tab.db.status.value).toMatchObject({ connection: "live", pending: 0, problem: null });
  });

  test("what stood in the way of a synchronise() is not told any more after one that came through", async () => {
    const tab = world.tab();
    world.script.online = false;
    await expect(tab.db.synchronise()).rejects.toThrow();
    expect(tab.db.status.value.problem).not.toBeNull();
    world.script.online = true;
    await tab.db.synchronise();
    expect(tab.db.status.value.problem).toBeNull();
  });

  test("a write does not break into the time that the service asks to wait (I45)", async () => {
    const tab = await world.live();
    world.script.answers.push.push(problem(503, "unavailable", { "Retry-After": "30" }));
    await tab.db.notes.add({ title: "a" });
    await world.pass(2_000);
    await tab.db.notes.add({ title: "b" });
    await world.pass(5_000);
    expect(world.script.pushes).toHaveLength(1);
    await world.pass(30_000);
    expect(rows()).toBe(2);
  });

  test("a clock that goes back far does not put pushes off as far", async () => {
    const tab = await world.live();
    world.time.now += 20 * 86_400_000;
    world.script.answers.push.push(() => Promise.reject(new TypeError("fetch failed")));
    await tab.db.notes.add({ title: "a" });
    await until(
      () => world.script.pushes.length === 1,
      () => world.time.pass(5),
    );
    await quiet();
    world.time.now -= 20 * 86_400_000;
    await tab.db.notes.add({ title: "b" });
    await world.pass(120_000);
    expect(rows()).toBe(2);
  });

  test("a push whose lock another tab has taken is tried again, and is no fault to be reported (I25)", async () => {
    const tab = await world.live();
    const push = held(world.script.model);
    world.script.answers.push.push(push.answer);
    await tab.db.notes.add({ title: "a" });
    await until(
      () => world.script.pushes.length === 1,
      () => world.time.pass(5),
    );
    const other = tab.device.life();
    await other.locks.request(`tidemark:${tab.device.name}:push`, { steal: true }, () => undefined);
    push.release();
    await world.pass(5_000);
    expect(tab.reports).toEqual([]);
    expect([...world.service.effects.values()]).toEqual([1]);
  });
});

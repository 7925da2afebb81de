/** The connection of a tab that synchronises by itself: stream, back-off, users (SPEC 5 and 6). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { millisOf, reading } from "../../src/protocol/clock.ts";
import { id } from "../support/local.ts";
import { held, problem, token } from "../support/script.ts";
import { type Tab, World } from "../support/tab.ts";
import { quiet, START, until } from "../support/time.ts";

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => world.end());

const ANN = "user:ann";
const theirs = (number: number, title: string) =>
  world.service.write(ANN, "put", "notes", id(number), { title, labels: {} });
const shows = (tab: Tab, ...titles: string[]) =>
  until(async () => String((await tab.db.notes.orderBy("id").toArray()).map(({ title }) => title)) === String(titles));

describe("connecting", () => {
  test("a tab catches up over HTTP, then opens the stream with what it holds", async () => {
    theirs(1, "a");
    const tab = await world.live();
    expect(world.last.url).toBe("ws://service.test/sync/stream");
    expect(world.last.protocol).toBe("tidemark.v1");
    const { client } = await tab.replica();
    expect(world.last.sent[0]).toMatchObject({
      t: "hello",
      client,
      schema: 3,
      watermark: { [ANN]: "epoch.1.0.3" },
      scopes: null,
    });
    await shows(tab, "a");
  });

  test("pause closes the stream and sends no more, and resume goes on", async () => {
    const tab = await world.live();
    tab.db.pause();
    expect(world.last.closed).toBe(true);
    expect(tab.db.status.value.connection).toBe("paused");
    await tab.db.notes.add({ title: "a" });
    world.time.pass(60_000);
    await quiet();
    expect(world.script.pushes).toEqual([]);
    tab.db.resume();
    await (await world.script.connection(2)).welcome();
    await tab.settled();
    expect(world.script.sent).toHaveLength(1);
  });

  test("status tells what is pending, since when, and when all is in sync", async () => {
    const tab = await world.live();
    await until(() => tab.db.status.value.inSync);
    const { answer, release } = held(world.script.model);
    world.script.answers.push.push(answer);
    await tab.db.notes.add({ title: "a" });
    await until(() => tab.db.status.value.pending === 1);
    expect(tab.db.status.value).toMatchObject({
      inSync: false,
      pendingSince: world.time.now,
      user: "ann",
      leader: true,
    });
    world.time.pass(5);
    release();
    await until(() => tab.db.status.value.pending === 0);
    expect(tab.db.status.value).toMatchObject({ inSync: true, pendingSince: null });
  });
});

describe("pushing", () => {
  test("a write waits for company, and goes with what came meanwhile", async () => {
    const tab = await world.live();
    await tab.db.notes.add({ title: "a" });
    world.time.pass(4);
    await quiet();
    expect(world.script.pushes).toEqual([]);
    await tab.db.notes.add({ title: "b" });
    world.time.pass(1);
    await until(() => world.script.pushes.length === 1);
    expect(world.script.sent).toHaveLength(2);
  });

  test("one push is in flight at a time, and what was written meanwhile follows it", async () => {
    const tab = await world.live();
    const { answer, release, asked } = held(world.script.model);
    world.script.answers.push.push(answer);
    await tab.db.notes.add({ title: "a" });
    world.time.pass(5);
    await asked;
    await tab.db.notes.add({ title: "b" });
    world.time.pass(1_000);
    await quiet();
    expect(world.script.pushes).toHaveLength(1);
    release();
    await until(() => world.script.pushes.length === 2);
    expect(world.script.sent.map(({ fields }) => fields?.title)).toEqual(["a", "b"]);
  });

  test("what is sent before the connection is there is stamped by the service's time all the same (I6)", async () => {
    world.service.ahead = 3_600_000;
    const { answer, release } = held(world.script.model);
    world.script.answers.time.push(answer);
    const tab = world.tab({ start: true });
    await tab.db.notes.add({ title: "a" });
    await until(
      () => world.script.pushes.length === 1,
      () => world.time.pass(5),
    );
    expect(millisOf(world.script.sent[0]?.at ?? "")).toBeGreaterThanOrEqual(START + 3_600_000);
    release();
  });

  test("an answer to a push from before a reset is awaited by nobody, and shows nothing that is not there", async () => {
    for (const row of [1, 2, 3]) theirs(row, "a");
    const tab = await world.live();
    let release: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    world.script.answers.push.push(async (asked) => {
      const response = await world.script.model(asked);
      await gate;
      return response;
    });
    await tab.db.notes.add({ id: id(4), title: "mine" });
    await until(
      () => world.service.rows(ANN).size === 4,
      () => world.time.pass(5),
    );
    world.service.renew("other", [ANN]);
    world.last.end(1012);
    await (await world.another()).welcome();
    await shows(tab, "mine");
    release();
    await until(async () => (await tab.outbox()).length === 0);
    await shows(tab);
  });

  test("Retry-After is honoured", async () => {
    const tab = await world.live();
    world.script.answers.push.push(problem(429, "rate_limited", { "Retry-After": "30" }));
    await tab.db.notes.add({ title: "a" });
    world.time.pass(5);
    await until(() => tab.db.status.value.problem?.code === "unavailable");
    await quiet();
    world.time.pass(29_000);
    await quiet();
    expect(world.script.pushes).toHaveLength(1);
    world.time.pass(1_001);
    await until(() => world.script.pushes.length === 2);
  });

  test("failures in a row are further and further apart, and writes meanwhile do not hurry them", async () => {
    const tab = await world.live();
    const times: number[] = [];
    for (let at = 0; at < 5; at++) {
      world.script.answers.push.push((asked) => {
        times.push(world.time.now);
        return problem(503, "unavailable")(asked);
      });
    }
    await tab.db.notes.add({ title: "a" });
    await until(
      () => times.length === 5,
      () => world.time.pass(20),
    );
    const gaps = times.slice(1).map((time, at) => time - (times[at] ?? 0));
    for (const [at, gap] of gaps.entries()) expect(gap).toBeGreaterThanOrEqual(250 * 2 ** at);
  });

  test("an upgrade stops everything, keeps the outbox, and says so", async () => {
    const tab = await world.live();
    world.script.answers.push.push(problem(409, "schema_mismatch"));
    await tab.db.notes.add({ title: "a" });
    world.time.pass(5);
    await tab.stands("needs-upgrade");
    expect(world.last.closed).toBe(true);
    expect(await tab.outbox()).toHaveLength(1);
    world.time.pass(50_000);
    await quiet();
    expect(world.script.pushes).toHaveLength(1);
  });

  test("while a service is asked again that has not risen, the app goes on saying needs-upgrade", async () => {
    const tab = await world.live();
    const mismatch = () => problem(409, "schema_mismatch");
    world.script.answers.push.push(mismatch());
    await tab.db.notes.add({ title: "a" });
    world.time.pass(5);
    await tab.stands("needs-upgrade");
    const told = new Set<string>();
    tab.db.status.subscribe(() => told.add(tab.db.status.value.connection));
    world.script.answers.push.push(mismatch(), mismatch());
    world.script.answers.pull.push(mismatch(), mismatch());
    const asked = world.script.requests.length;
    await world.pass(61_000, 1_000);
    expect(world.script.requests.length).toBeGreaterThan(asked);
    expect([...told]).toEqual(["needs-upgrade"]);
  });

  test("a service that rises after its app is found out within a minute", async () => {
    const tab = await world.live();
    world.script.answers.push.push(problem(409, "schema_mismatch"));
    await tab.db.notes.add({ title: "a" });
    world.time.pass(5);
    await tab.stands("needs-upgrade");
    await world.pass(60_000, 5_000);
    await (await world.another()).welcome();
    await tab.settled();
    expect(tab.db.status.value).toMatchObject({ connection: "live", problem: null });
    expect(world.service.rows(ANN).size).toBe(1);
  });
});

test("what is written into a scope that is not kept here is sent, and gone once it is applied", async () => {
  world.service.members = { ann: ["workspace:7"] };
  const tab = await world.live({ scopes: ["workspace:7"] });
  await tab.db.notes.add({ title: "a" });
  // Too short a time for another pull.
  await world.pass(1_000);
  expect(await tab.outbox()).toEqual([]);
  expect(await tab.db.notes.count()).toBe(0);
  expect(world.service.rows(ANN).size).toBe(1);
});

describe("frames", () => {
  test("changes are applied as they come, and pending edits stay on top (I35)", async () => {
    const tab = await world.live();
    theirs(1, "a");
    world.last.bring("ann", ANN, 0);
    await shows(tab, "a");
    const { answer, release } = held(world.script.model);
    world.script.answers.push.push(answer);
    await tab.db.notes.update(id(1), { title: "mine" });
    world.service.write(ANN, "patch", "notes", id(1), { body: "theirs" });
    world.last.bring("ann", ANN, 1);
    await until(async () => (await tab.db.notes.get(id(1)))?.body === "theirs");
    expect(await tab.db.notes.get(id(1))).toMatchObject({ title: "mine" });
    release();
  });

  test("one's own write comes back by the stream and leaves the outbox", async () => {
    const tab = await world.live();
    await tab.db.notes.add({ id: id(1), title: "a" });
    world.time.pass(5);
    await until(() => world.script.pushes.length === 1 && world.service.head(ANN) === 1);
    world.last.bring("ann", ANN, 0);
    await until(async () => (await tab.outbox()).length === 0);
    await shows(tab, "a");
  });

  test("a frame that does not join on leads to a pull (I34)", async () => {
    const tab = await world.live();
    const pulls = world.script.pulls.length;
    theirs(1, "a");
    theirs(2, "b");
    world.last.bring("ann", ANN, 1);
    await shows(tab, "a", "b");
    expect(world.script.pulls.length).toBe(pulls + 1);
  });

  test("behind leads to a pull", async () => {
    const tab = await world.live();
    const head = theirs(1, "a");
    world.last.say({ t: "behind", scope: ANN, head });
    await shows(tab, "a");
  });

  test("a reset that answers an older hello than the latest pull does not take the replica back (I30, I34)", async () => {
    const tab = await world.live();
    theirs(1, "a");
    // A pull because of another scope brings this one, too.
    world.last.say({ t: "behind", scope: "user:other", head: 9 });
    await shows(tab, "a");
    const clock = reading(world.time.now, 0, "0".repeat(16));
    const stale = { scope: ANN, from: 0, to: 0, head: 0, watermark: "older.0.0.3", changes: [], reset: true };
    world.last.say({ t: "changes", ...stale, clock });
    theirs(2, "b");
    world.last.bring("ann", ANN, 1);
    await shows(tab, "a", "b");
    expect((await tab.scopes())[0]).toMatchObject({ to: 2, highest: 2 });
    expect(world.script.pulls.length).toBe(2);
  });

  test("a frame repeated or overtaken changes nothing (I34)", async () => {
    const tab = await world.live();
    theirs(1, "a");
    world.last.bring("ann", ANN, 0);
    await shows(tab, "a");
    world.service.write(ANN, "patch", "notes", id(1), { title: "b" });
    world.last.bring("ann", ANN, 1);
    world.last.bring("ann", ANN, 1);
    await shows(tab, "b");
    const [scope] = await tab.scopes();
    expect(scope).toMatchObject({ to: 2, highest: 2 });
    expect(tab.reports).toEqual([]);
  });

  test("scope_revoked takes the scope's rows away and parks what was not sent", async () => {
    world.service.members = { ann: ["workspace:1"] };
    world.service.write("workspace:1", "put", "tasks", id(1), { title: "a" });
    const tab = await world.live();
    await until(async () => (await tab.db.tasks.count()) === 1);
    await tab.db.tasks.update(id(1), { title: "mine" });
    world.last.say({ t: "scope_revoked", scope: "workspace:1" });
    await until(async () => (await tab.db.tasks.count()) === 0);
    expect(await tab.db.rejected.list()).toMatchObject([{ code: "revoked" }]);
  });

  test("a scope added brings its rows from 0", async () => {
    const tab = await world.live();
    world.service.members = { ann: ["workspace:1"] };
    world.service.write("workspace:1", "put", "tasks", id(1), { title: "a" });
    world.last.say({ t: "scope_added", scope: "workspace:1" });
    world.last.bring("ann", "workspace:1", 0);
    await until(async () => (await tab.db.tasks.count()) === 1);
  });

  test("a wrong digest on the stream is reported and healed by a pull (I32)", async () => {
    const tab = await world.live();
    theirs(1, "a");
    const { runs, trailer } = world.service.pull("ann", { schema: 3, watermark: { [ANN]: "epoch.0.0.3" } });
    for (const run of runs) world.last.say({ t: "changes", ...run, changes: [], clock: trailer.clock });
    await until(() => tab.reports.length === 1);
    await shows(tab, "a");
    expect(tab.reports).toMatchObject([{ code: "digest" }]);
  });

  test("frames that are none, or of a kind of later versions, are ignored", async () => {
    const tab = await world.live();
    world.last.say("no JSON");
    world.last.say('{"t": "weather", "rain": true}');
    world.last.say('{"t": "changes"}');
    theirs(1, "a");
    world.last.bring("ann", ANN, 0);
    await shows(tab, "a");
    expect(tab.db.status.value.connection).toBe("live");
  });
});

describe("losing the connection", () => {
  test("a closed stream is opened again after a while, with what was missed", async () => {
    const tab = await world.live();
    world.last.end(1012);
    expect(tab.db.status.value.connection).toBe("connecting");
    theirs(1, "a");
    await (await world.another()).welcome();
    await tab.stands("live");
    await shows(tab, "a");
  });

  test("a server that asks to stay away is left alone that long (I45)", async () => {
    await world.live();
    world.last.end(1012, "retry 20000 ms; the server is going away");
    world.time.pass(19_900);
    await quiet();
    expect(world.script.sockets).toHaveLength(1);
    world.time.pass(101);
    await world.script.connection(2);
  });

  test("a stream that is silent for two heartbeats is given up", async () => {
    await world.live();
    await quiet();
    world.time.pass(25_000);
    expect(world.last.sent.at(-1)).toMatchObject({ t: "ping" });
    world.time.pass(25_000);
    expect(world.last.closed).toBe(true);
  });

  test("a network that goes is offline at once, and its return connects at once", async () => {
    const window = new EventTarget();
    const tab = await world.live({ around: { window: window as Window } });
    window.dispatchEvent(new Event("offline"));
    expect(tab.db.status.value.connection).toBe("offline");
    expect(world.last.closed).toBe(true);
    await tab.db.notes.add({ title: "a" });
    window.dispatchEvent(new Event("online"));
    await (await world.script.connection(2)).welcome();
    await tab.stands("live");
    await tab.settled();
    expect(world.service.rows(ANN).size).toBe(1);
  });

  test("without a network everything is kept, and goes when it is back (I25)", async () => {
    world.script.online = false;
    const tab = world.tab({ start: true });
    await tab.db.notes.add({ title: "a" });
    await until(
      () => tab.db.status.value.problem?.code === "unavailable",
      () => world.time.pass(5),
    );
    world.script.online = true;
    await (await world.another()).welcome();
    await tab.settled();
    expect(world.service.rows(ANN).size).toBe(1);
  });

  test.each([
    [4409, "needs-upgrade"],
    [4403, "refused"],
    [4400, "refused"],
  ] as const)("a close with %i is no lost connection: %s", async (code, connection) => {
    const tab = await world.live();
    world.last.end(code, "no");
    await tab.stands(connection);
    world.time.pass(code === 4409 ? 50_000 : 600_000);
    await quiet();
    expect(world.script.sockets).toHaveLength(1);
  });
});

describe("tokens and users", () => {
  test("a token is renewed in place before it runs out", async () => {
    const expires = () => world.time.now / 1_000 + 300;
    const tab = await world.live({ fetchToken: async () => token("ann", expires()) });
    for (let at = 0; at < 13; at++) {
      world.time.pass(20_000);
      world.last.say({ t: "pong", clock: world.service.clock() });
      await quiet(5);
    }
    const auth = world.last.sent.filter(({ t }) => t === "auth");
    expect(auth).toHaveLength(1);
    expect(world.script.sockets).toHaveLength(1);
    expect(tab.db.status.value.connection).toBe("live");
  });

  test("a close with 4401 asks for a fresh token and connects again", async () => {
    const tab = await world.live();
    const before = tab.asked;
    world.last.end(4401, "token expired");
    await (await world.another()).welcome();
    await tab.stands("live");
    expect(tab.asked).toBeGreaterThan(before);
  });

  test("nobody signed in stands as needs-auth, and signing in goes on from there", async () => {
    const tab = world.tab({ start: true, user: null, signInPatience: 0 });
    await until(
      () => tab.db.status.value.connection === "needs-auth",
      () => world.time.pass(1),
    );
    tab.user = "ann";
    tab.db.signedIn();
    await (await world.another()).welcome();
    await tab.stands("live");
    await tab.db.notes.add({ title: "a" });
    await tab.settled();
    expect(world.service.rows(ANN).size).toBe(1);
  });

  test("another user sees their own rows and nothing of the former one's, whose unsent writes come back (I25)", async () => {
    theirs(1, "ann's");
    world.service.write("user:bob", "put", "notes", id(2), { title: "bob's", labels: {} });
    const tab = await world.live();
    await shows(tab, "ann's");
    world.script.answers.push.push(problem(503, "unavailable"));
    await tab.db.notes.add({ id: id(3), title: "unsent" });
    tab.user = "bob";
    tab.db.signedIn();
    await (await world.script.connection(2)).welcome();
    await until(() => tab.db.status.value.user === "bob");
    await shows(tab, "bob's");
    tab.user = "ann";
    tab.db.signedIn();
    await (await world.script.connection(3)).welcome();
    await tab.settled();
    await shows(tab, "ann's", "unsent");
    expect(world.service.rows("user:bob").size).toBe(1);
    expect(world.service.rows(ANN).size).toBe(2);
  });
});

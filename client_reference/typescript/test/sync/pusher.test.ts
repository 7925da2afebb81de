/** Pushes: what is sent, in which order, and what answers of every kind do to the outbox (SPEC 2 and 4). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { PushRequest } from "../../src/generated/messages.ts";
import { millisOf, reading } from "../../src/protocol/clock.ts";
import { id } from "../support/local.ts";
import { schema } from "../support/schema.ts";
import { json, lost, page, problem } from "../support/script.ts";
import { later, refused } from "../support/service.ts";
import { type Tab, World } from "../support/tab.ts";
import { quiet, START, turn, until } from "../support/time.ts";

let world: World;
let tab: Tab;
beforeEach(async () => {
  world = new World();
  tab = world.tab();
  await tab.db.open();
});
afterEach(() => world.end());

const ANN = "user:ann";
const rows = () => [...world.service.rows(ANN).values()].map(({ title }) => title).sort();
const add = (...titles: string[]) => tab.db.notes.bulkAdd(titles.map((title, at) => ({ id: id(at), title })));

describe("what is sent", () => {
  test("the outbox is sent in the order it was written, under the replica's name and number", async () => {
    await tab.db.notes.add({ id: id(1), title: "a" });
    await tab.db.notes.update(id(1), { body: "b" });
    await tab.db.notes.add({ id: id(0), title: "c" });
    await tab.db.synchronise();
    expect(world.script.sent.map(({ op, row }) => [op, row])).toEqual([
      ["put", id(1)],
      ["patch", id(1)],
      ["put", id(0)],
    ]);
    expect(world.script.pushes).toMatchObject([{ client: (await tab.replica()).client, schema: 3 }]);
    expect(rows()).toEqual(["a", "c"]);
    expect(await tab.outbox()).toEqual([]);
  });

  test("a mutation travels with what the protocol names and nothing else", async () => {
    await tab.db.transaction("rw", tab.db.notes, async () => {
      await tab.db.notes.add({ id: id(1), title: "a" });
      await tab.db.notes.delete(id(1));
    });
    await tab.db.synchronise();
    const [put, gone] = world.script.sent;
    expect(Object.keys(put ?? {}).sort()).toEqual(["at", "entity", "fields", "group", "op", "row", "scope", "seq"]);
    expect(Object.keys(gone ?? {}).sort()).toEqual(["at", "entity", "group", "op", "row", "scope", "seq"]);
  });

  test("more than one push holds goes in several, one after the other", async () => {
    await tab.db.notes.bulkAdd(Array.from({ length: 1_500 }, (_, at) => ({ id: id(at), title: "a" })));
    await tab.db.synchronise();
    expect(world.script.pushes.map(({ mutations }) => mutations.length)).toEqual([1_000, 500]);
    expect(await tab.outbox()).toEqual([]);
  });

  test("nothing to send is no request", async () => {
    await tab.db.synchronise();
    expect(world.script.pushes).toEqual([]);
  });
});

describe("answers that leave something", () => {
  test("what is put off stays, with everything behind it, and is sent the same again (I25)", async () => {
    await add("a", "b", "c");
    let first = true;
    world.service.judge = ({ row }) => (first && row === id(1) ? later("unavailable") : null);
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    first = false;
    expect((await tab.outbox()).filter(({ queued }) => queued).map(({ row }) => row)).toEqual([id(1), id(2)]);
    await tab.db.synchronise();
    const [before, after] = world.script.pushes;
    expect(after?.mutations).toEqual(before?.mutations.slice(1));
    expect(rows()).toEqual(["a", "b", "c"]);
  });

  test("what is rejected becomes a dead letter and does not hold up what follows (I26)", async () => {
    await add("a", "bad", "c");
    world.service.judge = ({ fields }) => (fields?.title === "bad" ? refused("rule") : null);
    await tab.db.synchronise();
    expect(rows()).toEqual(["a", "c"]);
    expect(await tab.db.rejected.list()).toMatchObject([{ code: "rule" }]);
    expect((await tab.db.notes.toArray()).map(({ title }) => title)).toEqual(["a", "c"]);
  });

  test("one rejection rejects its group, and the others' letters say so", async () => {
    await tab.db.transaction("rw", tab.db.notes, () => add("a", "bad"));
    world.service.judge = ({ fields }) => (fields?.title === "bad" ? refused("rule") : null);
    await tab.db.synchronise();
    expect(rows()).toEqual([]);
    expect((await tab.db.rejected.list()).map(({ code }) => code)).toEqual(["group_rejected", "rule"]);
  });

  test("an answer that got lost is asked for again, and has its effect once (I25)", async () => {
    await add("a");
    world.script.answers.push.push(lost(world.script));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await tab.outbox()).toHaveLength(1);
    await tab.db.synchronise();
    expect([...world.service.effects.values()]).toEqual([1]);
    expect(await tab.outbox()).toEqual([]);
  });

  test("a verdict of a kind that this client does not know keeps the mutation (I25)", async () => {
    await add("a");
    world.script.answers.push.push(({ body }) =>
      json({
        results: (body.mutations as { seq: number }[]).map(({ seq }) => ({ seq, status: "pondering" })),
        clock: world.service.clock(),
      }),
    );
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await tab.outbox()).toHaveLength(1);
  });
});

describe("pushes that are refused whole (I18)", () => {
  const halving = [
    ["400", "malformed"],
    ["413", "too_large"],
  ] as const;

  test.each(halving)("after a %s the batch is halved until it passes", async (status, code) => {
    await add("a", "b", "c", "d");
    world.script.answers.push.push(problem(Number(status), code), problem(Number(status), code));
    await tab.db.synchronise();
    expect(world.script.pushes.map(({ mutations }) => mutations.length)).toEqual([4, 2, 1, 2, 1]);
    expect(rows()).toEqual(["a", "b", "c", "d"]);
  });

  test.each(halving)(
    "a mutation that alone gets a %s becomes a dead letter, and the rest is sent",
    async (status, code) => {
      await add("a", "bad", "c");
      const answer = world.script.model;
      for (let at = 0; at < 8; at++) {
        world.script.answers.push.push((asked) =>
          JSON.stringify(asked.body).includes("bad") ? problem(Number(status), code)(asked) : answer(asked),
        );
      }
      await tab.db.synchronise();
      expect(rows()).toEqual(["a", "c"]);
      expect(await tab.db.rejected.list()).toMatchObject([{ code, fields: { title: "bad" } }]);
    },
  );

  test("a group is never halved: refused alone, all of it becomes dead letters", async () => {
    await tab.db.transaction("rw", tab.db.notes, () => add("a", "b"));
    world.script.answers.push.push(problem(413, "too_large"));
    await tab.db.synchronise();
    expect(world.script.pushes).toHaveLength(1);
    expect(await tab.db.rejected.list()).toHaveLength(2);
    expect(await tab.db.notes.count()).toBe(0);
  });

  test("a 413 of something on the way halves, but costs no mutation (I25)", async () => {
    await add("a", "b");
    world.script.answers.push.push(page(413), page(413));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(world.script.pushes.map(({ mutations }) => mutations.length)).toEqual([2, 1]);
    expect(await tab.outbox()).toHaveLength(2);
    expect(await tab.letters()).toEqual([]);
  });
});

describe("something else answers (I25)", () => {
  const strangers: [string, Parameters<typeof world.script.answers.push.push>[0]][] = [
    ["a proxy's page with 502", page(502)],
    ["a sign-in page with 200", page(200)],
    ["JSON that is no answer", () => json({ hello: "world" })],
    ["a list", () => json([1, 2, 3])],
    ["an answer without a clock", () => json({ results: [] })],
    ["a 404 without a problem", page(404)],
    ["a 401 of a proxy", page(401)],
    ["nothing: the network is away", () => Promise.reject(new TypeError("fetch failed"))],
    ["a 503 of the service", problem(503, "unavailable")],
    ["a code of a later version", problem(418, "teapot")],
  ];

  test.each(strangers)("%s is temporary and costs no mutation", async (_, answer) => {
    await add("a");
    world.script.answers.push.push(answer);
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    expect(await tab.outbox()).toHaveLength(1);
    expect(await tab.letters()).toEqual([]);
    await tab.db.synchronise();
    expect(rows()).toEqual(["a"]);
  });

  test("a service that is silent for too long is given up for now", async () => {
    await add("a");
    let asked = false;
    world.script.answers.push.push(() => {
      asked = true;
      return new Promise(() => undefined);
    });
    const failed = expect(tab.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
    await until(() => asked);
    world.time.pass(60_000);
    await failed;
    expect(await tab.outbox()).toHaveLength(1);
  });
});

describe("the app is too old, or refused", () => {
  test("a 409 is an upgrade: the outbox is kept", async () => {
    await add("a");
    world.script.answers.push.push(problem(409, "schema_mismatch"));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "schema_mismatch" });
    expect(await tab.outbox()).toHaveLength(1);
  });

  test("a retry for the schema number is an upgrade too", async () => {
    await add("a");
    world.service.judge = () => later("schema_mismatch");
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "schema_mismatch" });
    expect(await tab.outbox()).toHaveLength(1);
  });

  test("what was written under a number that is no longer converted becomes a dead letter, and nothing waits for it", async () => {
    await add("old");
    tab.db.close();
    const raised = { ...schema, declaration: { ...schema.declaration, schema: 4 } };
    const after = world.tab({ device: tab.device, schema: raised });
    world.script.answers.push.push(({ body }) => {
      const { mutations } = body as unknown as PushRequest;
      const results = mutations.map(({ seq }) => ({ seq, ...later("schema_mismatch") }));
      return json({ results, clock: world.service.clock() });
    });
    await after.db.notes.add({ title: "new" });
    await after.db.synchronise();
    expect(rows()).toEqual(["new"]);
    const [letter] = await after.db.rejected.list();
    expect(letter).toMatchObject({ code: "schema_mismatch", fields: { title: "old" } });
    // Written again, it is of the present number.
    await after.db.rejected.retry(letter?.seq ?? 0);
    await after.db.synchronise();
    expect(rows()).toEqual(["new", "old"]);
  });

  test("a 403 is refused for good, and the outbox is kept (I25)", async () => {
    await add("a");
    world.script.answers.push.push(problem(403, "forbidden"));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "forbidden" });
    expect(await tab.outbox()).toHaveLength(1);
  });
});

test("a synchronise() that is overtaken again and again begins anew once", async () => {
  const window = new EventTarget();
  let asked = 0;
  const going = world.tab({
    start: true,
    around: {
      window: window as unknown as Window,
      fetch: () => {
        asked += 1;
        if (asked < 50) window.dispatchEvent(new Event("offline"));
        return Promise.reject(new TypeError("fetch failed"));
      },
    },
  });
  await going.stands("offline");
  await quiet();
  const before = asked;
  await expect(going.db.synchronise()).rejects.toMatchObject({ code: "unavailable" });
  expect(asked - before).toBe(2);
});

describe("clocks (I6)", () => {
  test("the offset is measured before the first sending, and what was written before is stamped by it", async () => {
    world.service.ahead = 3_600_000;
    await add("a", "b");
    await tab.db.synchronise();
    const [first, second] = world.script.sent;
    expect(millisOf(first?.at ?? "")).toBe(START + 3_600_000);
    expect((first?.at ?? "") < (second?.at ?? "")).toBe(true);
    expect((await tab.replica()).offset).toBe(3_600_000);
    expect(tab.db.status.value.offset).toBe(3_600_000);
  });

  test("half the way there and back is taken off", async () => {
    world.script.answers.time.push((asked) => {
      world.time.pass(400);
      return world.script.model(asked);
    });
    await tab.db.synchronise();
    expect((await tab.replica()).offset).toBe(200);
  });

  test("clock_ahead corrects the offset, stamps anew and sends again, and nothing is dropped", async () => {
    await tab.db.synchronise();
    world.time.now += 600_000;
    world.service.ahead = -600_000;
    await add("a", "b");
    // The offset that was measured last is of before the device's clock was put forward.
    const clock = reading(START, 0, "0".repeat(16));
    world.script.answers.time.push(() => json({ clock, time: "2027-01-15T08:10:00.000000Z" }));
    await tab.db.synchronise();
    expect(rows()).toEqual(["a", "b"]);
    expect([...world.service.effects.values()]).toEqual([1, 1]);
    expect(await tab.outbox()).toEqual([]);
  });

  test("what was handed over keeps its reading over a new measure: its answer may have been lost", async () => {
    await add("a");
    world.script.answers.push.push(lost(world.script));
    await expect(tab.db.synchronise()).rejects.toThrow();
    world.service.ahead = 5_000;
    await tab.db.synchronise();
    const [before, after] = world.script.sent;
    expect(after?.at).toBe(before?.at);
  });

  test("the clock advances to what answers bear (I4)", async () => {
    world.service.ahead = 20_000;
    world.script.answers.time.push(() => json({ clock: world.service.clock(), time: "2027-01-15T08:00:00.000000Z" }));
    await tab.db.synchronise();
    await tab.db.notes.add({ title: "a" });
    expect(((await tab.outbox())[0]?.at ?? "") > reading(START + 20_000, 0, "0".repeat(16))).toBe(true);
  });
});

describe("tokens", () => {
  test("a 401 asks for a fresh token once, and goes on with it", async () => {
    await add("a");
    world.script.answers.push.push(problem(401, "token_expired"));
    await tab.db.synchronise();
    const [first, second] = world.script.to("/sync/push");
    expect(second?.token).not.toBe(first?.token);
    expect(rows()).toEqual(["a"]);
  });

  test("a second 401 is needs_auth, and the outbox is kept (I25)", async () => {
    await add("a");
    world.script.answers.push.push(problem(401, "unauthenticated"), problem(401, "unauthenticated"));
    await expect(tab.db.synchronise()).rejects.toMatchObject({ code: "needs_auth" });
    expect(world.script.pushes).toHaveLength(2);
    expect(tab.db.status.value.problem).toMatchObject({ code: "needs_auth" });
    expect(await tab.outbox()).toHaveLength(1);
  });

  test("another user's fresh token is never used with this outbox", async () => {
    await add("a");
    world.script.answers.push.push((asked) => {
      tab.user = "bob";
      return problem(401, "token_expired")(asked) as Response;
    });
    await expect(tab.db.synchronise()).rejects.toThrow();
    expect(world.script.to("/sync/push").map(({ user }) => user)).toEqual(["ann"]);
    expect(world.script.to("/sync/pull").every(({ user }) => user === "ann")).toBe(true);
    expect(await tab.outbox()).toHaveLength(1);
  });

  test("an outbox waits for its user while another one is signed in, and is sent when that one is back (I25)", async () => {
    await add("ann's");
    tab.user = "bob";
    tab.db.signedIn();
    const other = world.tab({ device: tab.device, user: "bob" });
    await other.db.synchronise();
    await other.db.notes.add({ title: "bob's" });
    await other.db.synchronise();
    expect(world.script.sent.map(({ fields }) => fields?.title)).toEqual(["bob's"]);
    other.user = "ann";
    other.db.signedIn();
    await turn();
    const back = world.tab({ device: tab.device, user: "ann" });
    await back.db.synchronise();
    expect(rows()).toEqual(["ann's"]);
    expect(world.script.to("/sync/push").map(({ user }) => user)).toEqual(["bob", "ann"]);
  });

  test("nobody signed in is needs_auth, and nothing is asked of the service", async () => {
    const nobody = world.tab({ user: null });
    await expect(nobody.db.synchronise()).rejects.toMatchObject({ code: "needs_auth" });
    expect(world.script.requests).toEqual([]);
  });
});

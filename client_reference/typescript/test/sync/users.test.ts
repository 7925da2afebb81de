/** Who is signed in, over several tabs and over everything that is under way meanwhile (SPEC 8). */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Device } from "../support/device.ts";
import { held, ndjson, problem, token } from "../support/script.ts";
import { type Tab, type Wishes, World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => {
  vi.restoreAllMocks();
  world.end();
});

const users = async (...tabs: Tab[]) => {
  const kept = await Promise.all(tabs.map(async (tab) => (await tab.replica()).user));
  return new Set([...kept, ...tabs.map(({ db }) => db.status.value.user)]);
};

/** The app's sign-in, whose next token comes when the test lets it. */
function slowSignIn(): { wishes: Wishes; leave: () => void; give: (text: string) => void } {
  let text: Promise<string> = Promise.resolve(token("ann"));
  let give: (text: string) => void = () => undefined;
  const leave = () => {
    text = new Promise((resolve) => {
      give = resolve;
    });
  };
  return { wishes: { fetchToken: () => text }, leave, give: (given) => give(given) };
}

describe("two tabs", () => {
  let one: Tab;
  let two: Tab;
  beforeEach(async () => {
    const device = new Device();
    one = await world.live({ device });
    two = world.tab({ device, start: true });
    await two.stands("live");
  });
  const as = (user: string | null) => {
    one.user = user;
    two.user = user;
  };

  test("a tab that takes office asks who is signed in, whatever token it has held", async () => {
    await two.db.synchronise();
    as("bob");
    one.db.signedIn();
    await (await world.script.connection(2)).welcome();
    await until(() => two.db.status.value.user === "bob");
    one.db.close();
    await (await world.script.connection(3)).welcome();
    await until(() => two.db.status.value.leader);
    expect(await users(two)).toEqual(new Set(["bob"]));
  });

  test("a tab that finds somebody else signed in makes the leader connect as that one", async () => {
    as("bob");
    await two.db.synchronise();
    await (await world.script.connection(2)).welcome();
    await one.stands("live");
    expect(await users(one, two)).toEqual(new Set(["bob"]));
  });

  test("a leader whose connection is lost does not connect with a former user's token", async () => {
    as("bob");
    await two.db.synchronise();
    await (await world.script.connection(2)).welcome();
    await one.stands("live");
    world.script.sockets[1]?.end(1006);
    await world.pass(4_000);
    expect(world.script.sockets).toHaveLength(3);
    expect(await users(one, two)).toEqual(new Set(["bob"]));
  });

  test("a tab that rested while somebody else signed in can write when it is back", async () => {
    two.db.pause();
    as("bob");
    one.db.signedIn();
    await (await world.script.connection(2)).welcome();
    await until(() => one.db.status.value.user === "bob");
    two.db.resume();
    await quiet();
    await two.db.notes.add({ title: "a" });
    expect(await two.outbox()).toMatchObject([{ scope: "user:bob" }]);
  });

  test("a deletion in one tab leaves nobody's rows in another, once they have signed out", async () => {
    vi.spyOn(console, "warn").mockImplementation(() => undefined);
    await two.db.synchronise();
    as(null);
    one.db.signedIn();
    await quiet();
    await one.db.delete();
    await world.pass(15_000);
    expect(two.db.status.value.user).toBeNull();
  });
});

test("a tab that is opened as somebody else takes the one that leads along", async () => {
  const device = new Device();
  const one = await world.live({ device });
  one.user = "bob";
  const two = world.tab({ device, start: true, user: "bob", told: "bob" });
  await (await world.script.connection(2)).welcome();
  await until(() => one.db.status.value.user === "bob");
  await two.stands("live");
  expect(await users(one, two)).toEqual(new Set(["bob"]));
});

test("after a deletion nothing is fetched for whoever has signed out", async () => {
  const tab = await world.live();
  const pulls = world.script.pulls.length;
  tab.user = null;
  await tab.db.delete();
  tab.db.resume();
  await world.pass(15_000);
  expect(tab.db.status.value).toMatchObject({ user: null, connection: "needs-auth" });
  expect(world.script.pulls).toHaveLength(pulls);
});

test("a synchronise() that finds somebody else signed in connects as that one", async () => {
  const tab = await world.live();
  tab.user = "bob";
  // The token held runs out.
  world.time.now = 4_000_000_000_000;
  await tab.db.synchronise();
  await world.script.connection(2);
  expect(tab.db.status.value.user).toBe("bob");
});

describe("under way", () => {
  test("a former user's long pull does not hold up the next one", async () => {
    const tab = await world.live();
    const slow = held(() => ndjson([]));
    world.script.answers.pull.push(slow.answer);
    void tab.db.synchronise().catch(() => undefined);
    await slow.asked;
    tab.user = "bob";
    tab.db.signedIn();
    await until(() => tab.db.status.value.user === "bob");
  });

  test("a token that comes after somebody else has signed in is not theirs", async () => {
    const soon = token("ann", world.time.now / 1_000 + 100);
    const late: ((text: string) => void)[] = [];
    let fetchToken = () => Promise.resolve(soon);
    const tab = await world.live({ fetchToken: () => fetchToken() });
    fetchToken = () => new Promise((resolve) => late.push(resolve));
    await until(
      () => late.length === 1,
      () => world.time.pass(500),
    );
    fetchToken = () => Promise.resolve(token("bob"));
    tab.db.signedIn();
    late[0]?.(token("ann", 4_000_000_000, 7));
    await until(() => tab.db.status.value.user === "bob");
    await world.pass(3_000);
    expect(tab.db.status.value.user).toBe("bob");
  });

  test("the rest of an outbox is not sent with the next user's token (I25)", async () => {
    const { wishes, leave, give } = slowSignIn();
    const tab = await world.live(wishes);
    await tab.db.notes.bulkAdd(Array.from({ length: 1_500 }, (_, at) => ({ title: `${at}` })));
    const push = held(world.script.model);
    world.script.answers.push.push(push.answer);
    await world.pass(1_000);
    await push.asked;
    leave();
    tab.db.signedIn();
    push.release();
    await quiet();
    give(token("bob"));
    await until(() => tab.db.status.value.user === "bob");
    await world.pass(1_000);
    expect(world.script.to("/sync/push").filter(({ user }) => user === "bob")).toEqual([]);
    expect(await tab.letters()).toEqual([]);
  });

  test("a pull answered as the next user does not make dead letters of the former one's edits (I25)", async () => {
    const { wishes, leave, give } = slowSignIn();
    const tab = await world.live(wishes);
    world.script.answers.push.push(problem(503, "unavailable", { "Retry-After": "600" }));
    await tab.db.notes.add({ title: "a" });
    await world.pass(1_000);
    const pull = held(world.script.model);
    world.script.answers.pull.push(pull.answer);
    for (const head of [5, 6]) world.script.sockets[0]?.say({ t: "behind", scope: "user:ann", head });
    await pull.asked;
    leave();
    tab.db.signedIn();
    pull.release();
    await quiet();
    give(token("bob"));
    await until(() => tab.db.status.value.user === "bob");
    const shelf = await tab.db.table("sync_shelf").toArray();
    expect(shelf).toMatchObject([{ mutation: { op: "put" } }]);
  });
});

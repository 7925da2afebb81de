/** Changes where no websocket is to be had: long polls (SPEC 5, "Waiting"). */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { id } from "../support/local.ts";
import { problem } from "../support/script.ts";
import { type Tab, type Wishes, World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

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

describe("where no websocket is to be had", () => {
  async function hopeless(wishes: Wishes = {}): Promise<Tab> {
    const tab = world.tab({ start: true, ...wishes });
    (await world.script.connection(1)).end(null);
    (await world.another()).end(null);
    await until(() => world.script.pulls.some(({ wait }) => wait === 25));
    return tab;
  }

  test("after two connections that came to nothing changes come by long poll", async () => {
    const tab = await hopeless();
    theirs(1, "a");
    await shows(tab, "a");
    await tab.stands("polling");
  });

  test("writes are pushed while polling", async () => {
    const tab = await hopeless();
    await tab.db.notes.add({ title: "a" });
    await tab.settled();
    expect(world.service.rows(ANN).size).toBe(1);
  });

  test("a websocket that gets through ends the polling", async () => {
    const tab = await hopeless();
    await (await world.another()).welcome();
    await tab.stands("live");
    await quiet();
    const polls = world.script.pulls.filter(({ wait }) => wait).length;
    theirs(1, "a");
    world.last.bring("ann", ANN, 0);
    await shows(tab, "a");
    await quiet();
    expect(world.script.pulls.filter(({ wait }) => wait).length).toBe(polls);
  });

  test("the return of the network ends the wait for the next poll", async () => {
    const window = new EventTarget();
    const tab = await hopeless({ around: { window: window as unknown as Window } });
    world.script.online = false;
    theirs(1, "a");
    window.dispatchEvent(new Event("offline"));
    await world.pass(330_000, 1_000);
    world.script.online = true;
    window.dispatchEvent(new Event("online"));
    await world.pass(1_000);
    await shows(tab, "a");
  });

  test("polls that fail are repeated after a while, not at once", async () => {
    const tab = await hopeless();
    world.script.answers.pull.push(...Array.from({ length: 50 }, () => problem(503, "unavailable")));
    // What the service held is answered first.
    theirs(1, "a");
    await until(() => tab.db.status.value.problem !== null);
    await quiet();
    expect(50 - world.script.answers.pull.length).toBeLessThan(3);
  });
});

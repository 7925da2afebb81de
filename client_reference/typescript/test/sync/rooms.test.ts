/** Rooms over tabs, leaders and revocations (SPEC 6). */

import { afterEach, beforeEach, expect, test } from "vitest";
import { Device } from "../support/device.ts";
import { World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => world.end());

const ANN = "user:ann";
const joins = (at: number) => world.script.sockets[at]?.sent.filter(({ t }) => t === "join");

test("to be in a room without a state takes nobody's away who shows one there", async () => {
  const tab = await world.live();
  tab.db.room(ANN, { cursor: 1 });
  tab.db.room(ANN);
  await quiet();
  expect(joins(0)?.at(-1)).toMatchObject({ state: { cursor: 1 } });
});

test("a state that is no JSON is refused at once, and stands in no later leader's way", async () => {
  const device = new Device();
  const one = await world.live({ device });
  const two = world.tab({ device, start: true });
  await two.stands("live");
  expect(() => two.db.room(ANN, { x: undefined } as never)).toThrow(expect.objectContaining({ code: "malformed" }));
  one.db.close();
  await (await world.script.connection(2)).welcome();
  await two.stands("live");
});

test("a leader that comes back does not join rooms that were left meanwhile", async () => {
  const device = new Device();
  const one = await world.live({ device });
  const two = world.tab({ device, start: true });
  await two.stands("live");
  const room = two.db.room(ANN, 1);
  await quiet();
  expect(joins(0)).toHaveLength(1);
  one.db.pause();
  await (await world.script.connection(2)).welcome();
  room.leave();
  await quiet();
  one.db.resume();
  await quiet();
  two.db.close();
  await (await world.script.connection(3)).welcome();
  await quiet();
  expect(joins(2)).toEqual([]);
});

test("nobody is seen in the rooms of a scope that may not be read any more", async () => {
  world.service.members = { ann: ["workspace:7"] };
  const tab = await world.live();
  const { presence } = tab.db.room("workspace:7/document:1", null);
  const [socket] = world.script.sockets;
  const members = { x: { user: "bob", state: 1 } };
  socket?.say({ t: "presence", room: "workspace:7/document:1", members });
  await quiet();
  expect(presence.value.members).toEqual(members);
  socket?.say({ t: "scope_revoked", scope: "workspace:7" });
  await quiet();
  expect(presence.value.members).toEqual({});
});

test("a page that is put aside is out of its rooms, and in them again when it is back (I43)", async () => {
  const device = new Device();
  const page = new EventTarget();
  const say = (name: string) => page.dispatchEvent(Object.assign(new Event(name), { persisted: true }));
  await world.live({ device });
  const two = world.tab({ device, start: true, around: { window: page as unknown as Window } });
  await two.stands("live");
  two.db.room(ANN, { cursor: 1 });
  await quiet();
  expect(joins(0)).toHaveLength(1);
  say("pagehide");
  await quiet();
  expect(world.script.sockets[0]?.sent.at(-1)).toMatchObject({ t: "leave", room: ANN });
  say("pageshow");
  await until(() => joins(0)?.length === 2);
  expect(joins(0)?.at(-1)).toMatchObject({ room: ANN, state: { cursor: 1 } });
});

test("a scope that is added takes nobody's state away in the rooms of others", async () => {
  const device = new Device();
  const one = await world.live({ device });
  const two = world.tab({ device, start: true });
  await two.stands("live");
  two.db.room("workspace:70", { cursor: 0 });
  one.db.room("workspace:70", { cursor: 1 });
  await quiet();
  const before = joins(0)?.length;
  world.script.sockets[0]?.say({ t: "scope_added", scope: "workspace:7" });
  await quiet();
  expect(joins(0)).toHaveLength(before ?? 0);
});

test("a room that was forbidden is entered once its scope may be read", async () => {
  const tab = await world.live();
  const [socket] = world.script.sockets;
  const { presence } = tab.db.room("workspace:7", null);
  await quiet();
  socket?.say({ t: "error", code: "forbidden", message: "no such scope", room: "workspace:7" });
  await until(() => presence.value.problem === "forbidden");
  socket?.say({ t: "scope_added", scope: "workspace:7" });
  await until(() => joins(0)?.length === 2);
  socket?.say({ t: "presence", room: "workspace:7", members: { s: { user: "ann", state: null } } });
  await until(() => presence.value.problem === null);
});

/** The hooks, rendered in a real browser, in React's strict mode. */

import { act, cleanup, render, screen, waitFor } from "@testing-library/react";
import { type ReactNode, StrictMode } from "react";
import { afterEach, expect, test } from "vitest";
import { useUserCategories, useUserCategory } from "../../../../examples/calendar/generated/hooks.ts";
import { TidemarkProvider, useOutbox, useRejected, useRoom, useSyncStatus } from "../../src/react.ts";
import { type Device, device, somebody, until } from "./devices.ts";

const open: Device[] = [];

function opened(...given: Parameters<typeof device>): Device {
  const db = device(...given);
  open.push(db);
  return db;
}

afterEach(async () => {
  cleanup();
  for (const db of open.splice(0)) await db.delete();
});

function show(db: Device, what: ReactNode) {
  const tree = (inner: ReactNode) => (
    <StrictMode>
      <TidemarkProvider db={db}>{inner}</TidemarkProvider>
    </StrictMode>
  );
  const { rerender } = render(tree(what));
  return (next: ReactNode) => rerender(tree(next));
}

const reads = (id: string, text: string) => waitFor(() => expect(screen.getByTestId(id).textContent).toBe(text));

function Categories({ color }: { color: string }) {
  const all = useUserCategories();
  const some = useUserCategories((table) => table.filter((row) => row.color === color), [color]);
  const names = (rows: typeof all) => rows?.map(({ name }) => name).join() ?? "loading";
  return <p data-testid="rows">{`${names(all)};${names(some)}`}</p>;
}

test("rows are drawn as they change, by what the query depends on", async () => {
  const db = opened(somebody(), { start: false });
  const again = show(db, <Categories color="red" />);
  await reads("rows", ";");
  const key = await db.user_categories.add({ name: "a" });
  await reads("rows", "a;");
  await db.user_categories.update(key, { color: "red" });
  await reads("rows", "a;a");
  again(<Categories color="blue" />);
  await reads("rows", "a;");
});

function Category({ of }: { of: string | null }) {
  const row = useUserCategory(of);
  return <p data-testid="row">{row === undefined ? "loading" : row === null ? "none" : row.name}</p>;
}

test("one row is drawn as it comes, changes and goes; no key is no row", async () => {
  const db = opened(somebody(), { start: false });
  const id = crypto.randomUUID();
  const again = show(db, <Category of={null} />);
  await reads("row", "none");
  again(<Category of={id} />);
  await db.user_categories.put({ id, name: "a" });
  await reads("row", "a");
  await db.user_categories.delete(id);
  await reads("row", "none");
});

const drawn: string[] = [];

function Form({ of, name }: { of: string; name: string }) {
  const row = useUserCategory(of);
  if (row) drawn.push(`${name} as ${row.name}`);
  return null;
}

test("another key's row is never drawn for the one asked for", async () => {
  const db = opened(somebody(), { start: false });
  const [one, two] = [crypto.randomUUID(), crypto.randomUUID()];
  await db.user_categories.bulkPut([
    { id: one, name: "one" },
    { id: two, name: "two" },
  ]);
  const again = show(db, <Form of={one} name="one" />);
  await waitFor(() => expect(drawn).toContain("one as one"));
  again(<Form of={two} name="two" />);
  await waitFor(() => expect(drawn).toContain("two as two"));
  expect(new Set(drawn)).toEqual(new Set(["one as one", "two as two"]));
});

function Sync() {
  const { connection, pending, rejected, inSync } = useSyncStatus();
  const outbox = useOutbox();
  const { letters, edit } = useRejected();
  const [letter] = letters ?? [];
  return (
    <>
      <p data-testid="status">{`${connection} ${pending} ${rejected} ${inSync}`}</p>
      <p data-testid="outbox">{outbox?.map(({ op, fields }) => `${op} ${fields?.name}`).join() ?? "loading"}</p>
      <p data-testid="letters">{letters?.map(({ code }) => code).join() ?? "loading"}</p>
      <button type="button" onClick={() => letter && void edit(letter.seq, { name: "another" })}>
        repair
      </button>
    </>
  );
}

test("what waits, what was rejected, and how it stands are drawn; a rejected write is repaired and sent (I26)", async () => {
  const user = somebody();
  const db = opened(user, { start: false });
  show(db, <Sync />);
  await db.user_categories.add({ name: "taken" });
  await reads("outbox", "put taken");
  db.resume();
  await reads("status", "live 0 0 true");
  await db.user_categories.add({ name: "taken" });
  await reads("letters", "unique_violation");
  await reads("status", "live 0 1 false");
  act(() => screen.getByText("repair").click());
  await reads("letters", "");
  await reads("status", "live 0 0 true");
  expect(await db.user_categories.orderBy("name").keys()).toEqual(["another", "taken"]);
});

function Desk({ room, cursor }: { room: string | null; cursor: number }) {
  const { members, broadcast } = useRoom(room, { cursor }, { wave: ({ payload }) => heard.push(payload) });
  const shown = Object.values(members).map(
    ({ user, state }) => `${user === room?.slice(5, -5)} ${JSON.stringify(state)}`,
  );
  return (
    <button type="button" data-testid="room" onClick={() => broadcast("wave", cursor)}>
      {shown.sort().join()}
    </button>
  );
}

const heard: unknown[] = [];

test("a room is entered, shows what is given, hears what is said, and is left with its component (I42, I44)", async () => {
  const user = somebody();
  const db = opened(user);
  const other = opened(user);
  for (const one of [db, other]) await until(one, ({ connection }) => connection === "live");
  const name = `user:${user}/desk`;
  const theirs = other.room(name, { cursor: 9 });
  const again = show(db, <Desk room={name} cursor={1} />);
  await reads("room", 'true {"cursor":1},true {"cursor":9}');
  again(<Desk room={name} cursor={2} />);
  await reads("room", 'true {"cursor":2},true {"cursor":9}');
  expect(Object.values(theirs.others)).toEqual([{ user, state: { cursor: 2 } }]);
  theirs.broadcast("wave", 7);
  await waitFor(() => expect(heard).toEqual([7]));
  const waved = new Promise((resolve) => theirs.on("wave", ({ payload }) => resolve(payload)));
  act(() => screen.getByTestId("room").click());
  expect(await waved).toBe(2);
  again(<Desk room={null} cursor={2} />);
  await reads("room", "");
  await waitFor(() => expect(theirs.others).toEqual({}));
  expect(theirs.state).toEqual({ cursor: 9 });
  expect(Object.values(theirs.presence.value.members)).toEqual([{ user, state: { cursor: 9 } }]);
});

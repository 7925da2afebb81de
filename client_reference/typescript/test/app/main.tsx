/** A small app for the tests in `tests/browser`: they write through `window.db` and read what is on the screen. */

import { useLiveQuery } from "dexie-react-hooks";
import { useState } from "react";
import { createRoot } from "react-dom/client";

import { useUserCategories } from "../../../../examples/calendar/generated/hooks.ts";
import { useProductions, useProjectTasks } from "../../../../examples/productions/generated/hooks.ts";
import { type Database, type Letter, type Report, tidemark } from "../../src/index.ts";
import { TidemarkProvider, useOutbox, useRejected, useRoom, useSyncStatus, useTidemark } from "../../src/react.ts";
import { optionsOf, type Tables } from "./options.ts";

declare global {
  interface Window {
    db: Database<Tables>;
    /** What the database reported. */
    reports: Report[];
  }
}

const asked = new URLSearchParams(location.search);
/** Lists show so many rows. */
const SHOWN = 50;

function Status() {
  const { connection, user, pending, rejected, problem, firstSync, leader, schema } = useSyncStatus();
  return (
    <p id="status">
      <b>{connection}</b> as {user ?? "nobody"}: {pending} pending, {rejected} rejected
      {leader && ", leading"}, schema {schema}
      {problem && <em id="problem">: {problem.code}</em>}
      {firstSync && (
        <progress id="progress" value={firstSync.done} max={firstSync.total || 1}>
          {firstSync.done} of {firstSync.total}
        </progress>
      )}
    </p>
  );
}

function Rows({ id, rows, label }: { id: string; rows: { id: string; name: string }[] | undefined; label: string }) {
  return (
    <section>
      <h2>{label}</h2>
      <ul id={id}>
        {rows?.map(({ id: key, name }) => (
          <li key={key}>{name}</li>
        ))}
      </ul>
    </section>
  );
}

function Categories() {
  const db = useTidemark();
  const rows = useUserCategories((table) => table.limit(SHOWN));
  const count = useLiveQuery(() => db.table("user_categories").count(), [db]);
  return (
    <>
      <Rows id="categories" rows={rows} label="Categories" />
      <p>
        <span id="count">{count}</span> in all
      </p>
    </>
  );
}

function Productions() {
  const productions = useProductions((table) => table.limit(SHOWN));
  const tasks = useProjectTasks((table) => table.limit(SHOWN));
  const named = (rows: { id: string; title: string }[] | undefined) =>
    rows?.map(({ id, title }) => ({ id, name: title }));
  return (
    <>
      <Rows id="productions" rows={named(productions)} label="Productions" />
      <Rows id="tasks" rows={named(tasks)} label="Tasks" />
    </>
  );
}

function Outbox() {
  const outgoing = useOutbox();
  return (
    <Rows
      id="outbox"
      rows={outgoing?.map(({ seq, op, entity }) => ({ id: String(seq), name: `${op} ${entity}` }))}
      label="Outbox"
    />
  );
}

function Rejected() {
  const { letters, edit } = useRejected();
  return (
    <section>
      <h2>Rejected</h2>
      <ul id="rejected">
        {letters?.map((letter) => (
          <Repair key={letter.seq} letter={letter} edit={edit} />
        ))}
      </ul>
    </section>
  );
}

function Repair({ letter, edit }: { letter: Letter; edit: ReturnType<typeof useRejected>["edit"] }) {
  const [name, setName] = useState(String(letter.fields?.name ?? ""));
  return (
    <li>
      {letter.code} <input aria-label="name" value={name} onChange={({ target }) => setName(target.value)} />
      <button type="button" onClick={() => void edit(letter.seq, { name })}>
        Try again
      </button>
    </li>
  );
}

function Room({ name }: { name: string }) {
  const [said, setSaid] = useState<string[]>([]);
  const [cursor, setCursor] = useState("start");
  const { members, problem, broadcast } = useRoom(
    name,
    { cursor },
    { hello: ({ user, payload }) => setSaid((before) => [...before, `${user}: ${payload}`]) },
  );
  const people = Object.entries(members).map(([session, { user, state }]) => ({
    id: session,
    name: `${user} ${JSON.stringify(state)}`,
  }));
  return (
    <>
      <Rows id="members" rows={people} label={`Room ${name} ${problem ?? ""}`} />
      <Rows id="said" rows={said.map((text, at) => ({ id: String(at), name: text }))} label="Said" />
      <input aria-label="cursor" value={cursor} onChange={({ target }) => setCursor(target.value)} />
      <button type="button" onClick={() => broadcast("hello", cursor)}>
        Say hello
      </button>
    </>
  );
}

function App() {
  const room = asked.get("room");
  return (
    <>
      <Status />
      {asked.get("schema") === "productions" ? <Productions /> : <Categories />}
      <Outbox />
      <Rejected />
      {room && <Room name={room} />}
    </>
  );
}

window.reports = [];
window.db = tidemark<Tables>({ ...optionsOf(location.search), onReport: (report) => window.reports.push(report) });
if (asked.has("worker")) await navigator.serviceWorker.register(`/sw.js${location.search}`);
createRoot(document.getElementById("app") as HTMLElement).render(
  <TidemarkProvider db={window.db}>
    <App />
  </TidemarkProvider>,
);

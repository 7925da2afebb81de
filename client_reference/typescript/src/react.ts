/** React hooks over a database; `TidemarkProvider` says over which. */

import type { Collection, Table } from "dexie";
import { useLiveQuery } from "dexie-react-hooks";
import {
  createContext,
  createElement,
  type ReactNode,
  useContext,
  useEffect,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";

import type { Members } from "./protocol/clientRooms.ts";
import type { Json } from "./protocol/model.ts";
import type { Letter, Letters } from "./store/letters.ts";
import type { Outgoing } from "./store/outbox.ts";
import type { Presence, Room, Said } from "./sync/rooms.ts";
import type { Observed, Status } from "./sync/status.ts";
import type { Database, Tidemark } from "./tidemark.ts";

const Context = createContext<Tidemark | null>(null);

/** Give the components below a database. */
export function TidemarkProvider({ db, children }: { db: Tidemark; children?: ReactNode }): ReactNode {
  return createElement(Context, { value: db }, children);
}

/** The database of the provider above; `useTidemark<Tables>()` has its tables, as codegen names them. */
export function useTidemark<T = unknown>(): Database<T> {
  const db = useContext(Context);
  if (db === null) throw new Error("there is no <TidemarkProvider> above this component");
  return db as Database<T>;
}

/** A live query: undefined while loading, and never what was found in another database or for something else `asked`. */
function useFound<T>(asked: string, query: (db: Tidemark) => T | Promise<T>, deps: unknown[] = []): T | undefined {
  const db = useTidemark();
  const found = useLiveQuery(async () => ({ db, asked, value: await query(db) }), [db, asked, ...deps]);
  return found?.db === db && found.asked === asked ? found.value : undefined;
}

/**
 * Rows of a table, as they change; undefined while loading. `deps` name what `query` depends on besides: when they
 * change, the rows of before are given until the new ones are there.
 */
export function useRows<Row, Key>(
  name: string,
  query?: (table: Table<Row, Key>) => Collection<Row, Key> | Promise<Row[]>,
  deps: unknown[] = [],
): Row[] | undefined {
  const rows = (db: Tidemark) => {
    const table = db.table<Row, Key>(name);
    const found = query ? query(table) : table.toCollection();
    return "toArray" in found ? found.toArray() : found;
  };
  return useFound(name, rows, deps);
}

/** The row with this key, as it changes; undefined while loading, null if there is none. */
export function useRow<Row, Key>(name: string, key: Key | null | undefined): Row | null | undefined {
  return useFound<Row | null>(`${name} ${JSON.stringify(key)}`, async (db) =>
    key === null || key === undefined ? null : ((await db.table<Row, Key>(name).get(key)) ?? null),
  );
}

function useObserved<T>(observed: Observed<T>): T {
  return useSyncExternalStore(
    observed.subscribe,
    () => observed.value,
    () => observed.value,
  );
}

/** How synchronisation stands. */
export function useSyncStatus(): Status {
  return useObserved(useTidemark().status);
}

/** What the service has not answered yet; undefined while loading. */
export function useOutbox(): Outgoing[] | undefined {
  return useFound("outbox", (db) => db.outgoing());
}

/** What was rejected (undefined while loading), and what may be done about it. */
export function useRejected(): { letters: Letter[] | undefined } & Pick<
  Letters,
  "retry" | "edit" | "discard" | "export"
> {
  const letters = useFound("letters", (db) => db.rejected.list());
  const { rejected } = useTidemark();
  return {
    letters,
    retry: (seq) => rejected.retry(seq),
    edit: (seq, changes) => rejected.edit(seq, changes),
    discard: (seq) => rejected.discard(seq),
    export: () => rejected.export(),
  };
}

/** A room as a component is in it. */
export interface RoomView extends Presence {
  /** Show another state, until the one given to the hook changes. */
  show(state: Json): void;
  /** Say something to the others; lost where there is no connection. */
  broadcast(event: string, payload?: Json): void;
}

/** Be in a room for as long as the component is there (null: in none), showing `state`; hear what others say. */
export function useRoom(
  name: string | null,
  state?: Json,
  listeners: Readonly<Record<string, (said: Said) => void>> = {},
): RoomView {
  const db = useTidemark();
  const [room, setRoom] = useState<Room | null>(null);
  const latest = useRef({ state, listeners });
  latest.current = { state, listeners };
  useEffect(() => {
    if (name === null) return;
    const entered = db.room(name, plain(latest.current.state));
    setRoom(entered);
    return () => {
      setRoom(null);
      entered.leave();
    };
  }, [db, name]);
  const shown = JSON.stringify(state);
  useEffect(() => {
    if (shown !== undefined) room?.show(JSON.parse(shown) as Json);
  }, [room, shown]);
  const events = JSON.stringify(Object.keys(listeners).sort());
  useEffect(() => {
    const offs = (JSON.parse(events) as string[]).map((event) =>
      room?.on(event, (said) => latest.current.listeners[event]?.(said)),
    );
    return () => {
      for (const off of offs) off?.();
    };
  }, [room, events]);
  const presence = useObserved(room?.presence ?? NOWHERE);
  return {
    ...presence,
    show: (next) => room?.show(next),
    broadcast: (event, payload) => room?.broadcast(event, payload),
  };
}

/** What of a state can be shown: JSON. */
function plain(state: Json | undefined): Json | undefined {
  const text = JSON.stringify(state);
  return text === undefined ? undefined : (JSON.parse(text) as Json);
}

const NOWHERE: Observed<Presence> = {
  value: { members: {}, others: {}, problem: null },
  subscribe: () => () => undefined,
};

/** Who is in a room, by session, this device included; `useRoom` tells the others apart. */
export function usePresence(name: string | null, state?: Json): Members {
  return useRoom(name, state).members;
}

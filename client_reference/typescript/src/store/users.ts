/** Who this replica is and whose (SPEC 1): one user at a time; what others have not sent is kept aside. */

import { outdated } from "../errors.ts";
import { nameOf } from "../protocol/outbox.ts";
import {
  BASE,
  LETTERS,
  type LetterRecord,
  META,
  OUTBOX,
  type OutboxRecord,
  type ReplicaRecord,
  type Row,
  SCOPE,
  SHELF,
  type ShelfRecord,
} from "./records.ts";
import { redraw } from "./redraw.ts";
import type { Inside, Store } from "./store.ts";

/** How many rows are brought into another shape in one transaction. */
const SLICE = 1_000;

/** Who this replica is, made up where it is new. */
export function identify(store: Store): Promise<ReplicaRecord> {
  const { chance, declaration } = store;
  return store.write([], async (inside) => {
    const found = await inside.get<ReplicaRecord>(META, "replica");
    if (found !== undefined) return found;
    const { schema } = declaration;
    const replica: ReplicaRecord = {
      name: "replica",
      database: chance.uuid(),
      client: chance.uuid(),
      user: null,
      clock: null,
      issued: null,
      offset: null,
      schema,
      synced: null,
      resets: 0,
    };
    await inside.put(META, [replica]);
    return replica;
  });
}

/**
 * Make this the replica of `user`. Of another user before, rows go, and outbox and dead letters are set aside until
 * that user is back: never sent by anybody else, never shown to anybody else.
 */
export function become(store: Store, user: string): Promise<ReplicaRecord> {
  const tables = [...store.entities.keys()];
  return store.write(tables, async (inside) => {
    const before = await inside.replica();
    if (before.user === user) return before;
    // A newer app may have tables that this one does not know, and could not clear.
    if (before.schema > store.declaration.schema) throw outdated();
    if (before.user !== null) {
      await setAside(inside, before.user);
      for (const name of [...tables, BASE, SCOPE]) await inside.clear(name);
    }
    const client = before.user === null ? before.client : store.chance.uuid();
    const issued = await takeBack(store, inside, user);
    // Another node: what the former user issued and never sent does not come a second time.
    store.renewNode();
    // The clock has seen what was set aside.
    const replica: ReplicaRecord = { ...(await inside.replica()), client, user, issued, synced: null };
    await inside.put(META, [replica]);
    return replica;
  });
}

async function setAside(inside: Inside, user: string): Promise<void> {
  const records = await inside.all<OutboxRecord>(OUTBOX);
  const letters = await inside.all<LetterRecord>(LETTERS);
  const pending = records.filter(({ queued }) => queued);
  // What was given to the transport stands: later readings are above it, whoever writes next.
  const highest = records
    .flatMap(({ at, handed }) => (handed ? [at] : []))
    .sort()
    .at(-1);
  if (highest !== undefined) await inside.observe(highest);
  const shelf: ShelfRecord[] = [
    ...pending.map((mutation) => ({ user, mutation, letter: null })),
    ...letters.map((letter) => ({ user, mutation: null, letter })),
  ];
  await inside.add(SHELF, shelf);
  await inside.clear(OUTBOX);
  await inside.clear(LETTERS);
}

/** What a user had not sent is in the outbox again; its last reading. */
async function takeBack(store: Store, inside: Inside, user: string): Promise<string | null> {
  const shelf = await inside.all<Required<ShelfRecord>>(SHELF, { index: "user", is: user });
  const mutations = shelf.flatMap(({ mutation }) => (mutation === null ? [] : [mutation]));
  await inside.put(OUTBOX, mutations);
  await inside.put(
    LETTERS,
    shelf.flatMap(({ letter }) => (letter === null ? [] : [letter])),
  );
  await inside.remove(
    SHELF,
    shelf.map(({ id }) => id),
  );
  await redraw(store, inside, mutations.map(nameOf));
  return mutations.at(-1)?.at ?? null;
}

/** Rows kept under another schema number take the shape that this app declares, until the pull brings them anew. */
export async function reshape(store: Store): Promise<void> {
  const { schema } = store.declaration;
  const kept = await store.read([], (inside) => inside.replica());
  if (kept.schema >= schema) return;
  for (const table of store.entities.values()) {
    let after: unknown;
    do {
      after = await store.write([table.name], async (inside) => {
        const where = { limit: SLICE, ...(after === undefined ? {} : { above: after as string }) };
        const keys = await inside.keys<string>(table.name, where);
        const rows = await inside.all<Row>(table.name, where);
        await inside.put(
          table.name,
          rows.map((row) => table.rowFrom(String(row[table.scopeColumn]), row)),
        );
        return keys.at(-1);
      });
    } while (after !== undefined);
  }
  await store.write([], async (inside) => inside.put(META, [{ ...(await inside.replica()), schema }]));
}

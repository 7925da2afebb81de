/** Taking mutations out of the outbox: for good, or to the dead letters with all that depends on them (I26). */

import { dependents, nameOf, type Pending, rowName, type Settled } from "../protocol/outbox.ts";
import { BASE, LETTERS, type LetterRecord, OUTBOX, type OutboxRecord } from "./records.ts";
import { redraw } from "./redraw.ts";
import type { Inside, Store } from "./store.ts";

/** Where to look for what has no answer yet. */
export const QUEUED = { index: "queued", is: 1 };

/** What the server has not answered yet, in order. */
export function pendingIn(inside: Inside): Promise<OutboxRecord[]> {
  return inside.all<OutboxRecord>(OUTBOX, QUEUED);
}

/** Take mutations out of the outbox; their rows show what is left. */
export async function remove(store: Store, inside: Inside, mutations: readonly Pending[]): Promise<void> {
  let latest = "";
  for (const { at, handed } of mutations) if (handed && at > latest) latest = at;
  if (latest !== "") await inside.observe(latest);
  await inside.remove(
    OUTBOX,
    mutations.map(({ seq }) => seq),
  );
  await redraw(store, inside, mutations.map(nameOf));
}

/** Take rejected mutations out, with those pending that depend on them, and keep them all. */
export async function park(store: Store, inside: Inside, rejected: Settled["rejected"]): Promise<void> {
  if (rejected.length === 0) return;
  const parked = store.chance.now();
  const letters = new Map<number, LetterRecord>();
  for (const [mutation, { code, message, field = null }] of rejected) {
    letters.set(mutation.seq, { seq: mutation.seq, mutation, code, message, field, cause: null, parked });
  }
  const gone = rejected.map(([mutation]) => mutation);
  const pending = new Map((await pendingIn(inside)).map((record) => [record.seq, record]));
  for (const [seq, cause] of await leaning(store, inside, gone, [...pending.values()])) {
    const mutation = pending.get(seq);
    const message = `it builds on change ${cause}, which was not accepted`;
    const depends = { seq, code: "depends", message, field: null, parked };
    if (mutation) letters.set(seq, { mutation, ...depends, ...letters.get(seq), cause });
  }
  await inside.put(LETTERS, [...letters.values()]);
  await remove(
    store,
    inside,
    [...letters.values()].map(({ mutation }) => mutation),
  );
}

/** Mutations, of `pending` or `gone`, that make no sense without one `gone`: their seq → the seq they lean on. */
async function leaning(
  store: Store,
  inside: Inside,
  gone: readonly Pending[],
  pending: readonly Pending[],
): Promise<Map<number, number>> {
  const refs = (entity: string) => store.entities.get(entity)?.refs ?? [];
  // Asked of rows one by one, while nothing can be awaited: so all that may be asked for is looked up before.
  const names = new Set(pending.map(nameOf));
  for (const { scope, entity, fields } of pending) {
    for (const { name, ref } of refs(entity)) if (fields?.[name]) names.add(rowName(scope, ref, String(fields[name])));
  }
  const list = [...names];
  const bases = await inside.getMany(BASE, list);
  const visible = new Map(list.map((name, at) => [name, bases[at] !== undefined]));
  for (const record of await inside.all<OutboxRecord>(OUTBOX, { index: "[scope+awaits]" })) {
    visible.set(nameOf(record), record.op !== "delete");
  }
  return dependents(gone, pending, { refs, stands: (name) => visible.get(name) === true });
}

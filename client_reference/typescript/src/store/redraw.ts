/** Rows as the app shows them: the server's documents with the outbox on top (SPEC 3 and 5). */

import type { Fields } from "../protocol/model.ts";
import { onTop, rowName } from "../protocol/outbox.ts";
import { scopeId } from "../protocol/rows.ts";
import type { Declared, LocalKey } from "./entities.ts";
import { append } from "./lists.ts";
import { BASE, type BaseRecord, OUTBOX, type OutboxRecord, type Row, targetOf } from "./records.ts";
import type { Inside, Store } from "./store.ts";

/** Up to so many keys are asked for one by one; for more the whole index is read. */
const FEW = 32;

/** A place in a table: of a row that is unique over all scopes, or of one scope's. */
interface Slot {
  readonly table: Declared;
  readonly row: string;
  readonly key: LocalKey;
  readonly scopes: Set<string>;
  shown: Row | undefined;
}

/** What one scope has to show in a slot. */
interface Candidate {
  readonly scope: string;
  readonly base: BaseRecord | undefined;
  readonly doc: Fields | null;
  readonly visible: Fields | null;
  readonly plain: boolean;
}

/** Bring rows, each by its name (`scope/entity/row`), in line with the server's documents and the outbox. */
export async function redraw(store: Store, inside: Inside, names: Iterable<string>): Promise<void> {
  const scopes = new Map<string, Set<string>>();
  for (const name of names) {
    const slash = name.indexOf("/");
    const target = name.slice(slash + 1);
    scopes.set(target, (scopes.get(target) ?? new Set()).add(name.slice(0, slash)));
  }
  if (scopes.size === 0) return;
  const targets = [...scopes.keys()];
  const [mutations, hidden] = await Promise.all([mutationsOf(inside, targets), hiddenOf(inside, targets)]);
  const byTarget = new Map<string, OutboxRecord[]>();
  for (const mutation of mutations) {
    append(byTarget, mutation.target, mutation);
    scopes.get(mutation.target)?.add(mutation.scope);
  }
  for (const { name, hidden: target = "" } of hidden) scopes.get(target)?.add(name.slice(0, -target.length - 1));
  const slots = [...scopes].flatMap(([target, among]) => slotsOf(store, target, among));
  await look(inside, slots);
  await draw(inside, slots, byTarget);
}

/** The outbox's mutations of these rows, in order. */
export async function mutationsOf(inside: Inside, targets: readonly string[]): Promise<OutboxRecord[]> {
  return among<OutboxRecord>(inside, OUTBOX, "target", targets, ({ target }) => target);
}

/** The server's documents of these rows, where their table shows something else. */
function hiddenOf(inside: Inside, targets: readonly string[]): Promise<BaseRecord[]> {
  return among<BaseRecord>(inside, BASE, "hidden", targets, (base) => base.hidden ?? "");
}

async function among<T>(
  inside: Inside,
  table: string,
  index: string,
  keys: readonly string[],
  keyOf: (record: T) => string,
): Promise<T[]> {
  if (keys.length <= FEW) {
    return (await Promise.all(keys.map((is) => inside.all<T>(table, { index, is })))).flat();
  }
  const wanted = new Set(keys);
  return (await inside.all<T>(table, { index })).filter((record) => wanted.has(keyOf(record)));
}

function slotsOf(store: Store, target: string, scopes: Set<string>): Slot[] {
  const slash = target.indexOf("/");
  const table = store.entities.get(target.slice(0, slash));
  const row = target.slice(slash + 1);
  if (table === undefined) return [];
  if (!table.entity.key.per_scope) return [{ table, row, key: table.localKey("", row), scopes, shown: undefined }];
  return [...scopes].map((scope) => {
    const key = table.localKey(scopeId(scope), row);
    return { table, row, key, scopes: new Set([scope]), shown: undefined };
  });
}

/** What the tables show there now. */
async function look(inside: Inside, slots: Slot[]): Promise<void> {
  for (const [table, those] of byTable(slots)) {
    const rows = await inside.getMany<Row>(
      table.name,
      those.map(({ key }) => key),
    );
    for (const [at, slot] of those.entries()) {
      slot.shown = rows[at];
      if (slot.shown !== undefined) slot.scopes.add(table.scopeOf(slot.shown));
    }
  }
}

/** Show in each slot what is to be shown; of several scopes that have a row (it has moved, not all has come) the latest. */
async function draw(inside: Inside, slots: Slot[], mutations: ReadonlyMap<string, OutboxRecord[]>): Promise<void> {
  const names = slots.flatMap(({ table, row, scopes }) => [...scopes].map((scope) => rowName(scope, table.name, row)));
  const found = await inside.getMany<BaseRecord>(BASE, names);
  const bases = new Map(names.map((name, at) => [name, found[at]]));
  const records: BaseRecord[] = [];
  for (const [table, those] of byTable(slots)) {
    const puts: Row[] = [];
    const deletes: LocalKey[] = [];
    for (const slot of those) {
      const target = targetOf(table.name, slot.row);
      const candidates = candidatesOf(slot, bases, mutations.get(target) ?? []);
      const winner = latest(candidates);
      if (winner?.visible) puts.push(table.rowFrom(scopeId(winner.scope), winner.visible));
      else if (slot.shown !== undefined) deletes.push(slot.key);
      for (const candidate of candidates) records.push(...kept(candidate, target, candidate === winner));
    }
    await inside.put(table.name, puts);
    await inside.remove(table.name, deletes);
  }
  await inside.put(BASE, records);
}

function candidatesOf(
  { table, row, scopes, shown }: Slot,
  bases: ReadonlyMap<string, BaseRecord | undefined>,
  mutations: readonly OutboxRecord[],
): Candidate[] {
  const from = shown === undefined ? null : table.scopeOf(shown);
  return [...scopes].map((scope) => {
    const base = bases.get(rowName(scope, table.name, row));
    const held = shown !== undefined && from === scope ? table.documentOf(shown) : null;
    const doc = base === undefined ? null : (base.doc ?? held);
    const own = mutations.filter((mutation) => mutation.scope === scope);
    return { scope, base, doc, visible: onTop(doc, own, table.entity), plain: own.length === 0 };
  });
}

function latest(candidates: readonly Candidate[]): Candidate | null {
  let found: Candidate | null = null;
  for (const candidate of candidates) {
    const time = candidate.visible?.updated_at;
    if (time === undefined) continue;
    if (!found?.visible || String(time) >= String(found.visible.updated_at)) found = candidate;
  }
  return found;
}

/** The server's state of a row as it is to be kept: with the document, unless the table shows just that. */
function kept({ base, doc, plain }: Candidate, target: string, shown: boolean): BaseRecord[] {
  if (base === undefined || doc === null) return [];
  const bare = { name: base.name, version: base.version };
  return [plain && shown ? bare : { ...bare, doc, hidden: target }];
}

function byTable(slots: readonly Slot[]): Map<Declared, Slot[]> {
  const found = new Map<Declared, Slot[]>();
  for (const slot of slots) append(found, slot.table, slot);
  return found;
}

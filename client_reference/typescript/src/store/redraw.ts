/** Rows as the app shows them: the server's documents with the outbox on top (SPEC 3 and 5). */

import type { Fields } from "../protocol/model.ts";
import { onTop, rowName } from "../protocol/outbox.ts";
import { scopeId } from "../protocol/rows.ts";
import type { Declared, LocalKey } from "./entities.ts";
import { BASE, type BaseRecord, OUTBOX, type OutboxRecord, type Row, targetOf } from "./records.ts";
import type { Inside, Store } from "./store.ts";

/** What one scope has to show for a row. */
interface Candidate {
  scope: string;
  base: BaseRecord | undefined;
  doc: Fields | null;
  visible: Fields | null;
  plain: boolean;
}

/** Bring rows, each by its target (`entity/row`), in line with the server's documents and the outbox. */
export async function redraw(store: Store, inside: Inside, targets: Iterable<string>): Promise<void> {
  await Promise.all([...new Set(targets)].map((target) => redrawOne(store, inside, target)));
}

async function redrawOne(store: Store, inside: Inside, target: string): Promise<void> {
  const slash = target.indexOf("/");
  const table = store.entities.get(target.slice(0, slash));
  if (table === undefined) return;
  const row = target.slice(slash + 1);
  const [mutations, hidden] = await Promise.all([
    inside.all<OutboxRecord>(OUTBOX, { index: "target", is: target }),
    inside.all<BaseRecord>(BASE, { index: "hidden", is: target }),
  ]);
  const scopes = new Set(mutations.map(({ scope }) => scope));
  for (const { name } of hidden) scopes.add(name.slice(0, -target.length - 1));
  if (table.entity.key.per_scope) {
    await Promise.all(
      [...scopes].map((scope) => draw(inside, table, row, table.localKey(scopeId(scope), row), [scope], mutations)),
    );
  } else {
    await draw(inside, table, row, table.localKey("", row), [...scopes], mutations);
  }
}

/** Show one row: of several scopes that have it (it has moved, and not all has come yet) the latest. */
async function draw(
  inside: Inside,
  table: Declared,
  row: string,
  key: LocalKey,
  known: string[],
  mutations: OutboxRecord[],
): Promise<void> {
  const shown = await inside.get<Row>(table.name, key);
  const from = shown === undefined ? null : table.scopeOf(shown);
  const scopes = from === null || known.includes(from) ? known : [...known, from];
  const names = scopes.map((scope) => rowName(scope, table.name, row));
  const bases = await inside.getMany<BaseRecord>(BASE, names);
  const candidates = scopes.map((scope, at): Candidate => {
    const base = bases[at];
    const held = shown !== undefined && from === scope ? table.documentOf(shown) : null;
    const doc = base === undefined ? null : (base.doc ?? held);
    const own = mutations.filter((mutation) => mutation.scope === scope);
    return { scope, base, doc, visible: onTop(doc, own, table.entity), plain: own.length === 0 };
  });
  const winner = latest(candidates);
  if (winner?.visible) await inside.put(table.name, [table.rowFrom(scopeId(winner.scope), winner.visible)]);
  else if (shown !== undefined) await inside.remove(table.name, [key]);
  const target = targetOf(table.name, row);
  const records = candidates.flatMap(({ base, doc, plain, scope }): BaseRecord[] => {
    if (base === undefined || doc === null) return [];
    const bare = { name: base.name, version: base.version };
    return [plain && scope === winner?.scope ? bare : { ...bare, doc, hidden: target }];
  });
  await inside.put(BASE, records);
}

function latest(candidates: Candidate[]): Candidate | null {
  let found: Candidate | null = null;
  for (const candidate of candidates) {
    const time = candidate.visible?.updated_at;
    if (time === undefined) continue;
    if (!found?.visible || String(time) >= String(found.visible.updated_at)) found = candidate;
  }
  return found;
}

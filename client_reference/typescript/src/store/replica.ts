/** What the replica holds of the server's state, and how runs change it (SPEC 5, "Applying runs"). */

import type { Change, Changes, Run, VerdictError } from "../generated/messages.ts";
import { reading } from "../protocol/clock.ts";
import { MODULUS, ofRows, term, text } from "../protocol/digest.ts";
import { nameOf, rowName } from "../protocol/outbox.ts";
import { type Apply, judge, NOTHING } from "../protocol/replica.ts";
import { parseScope, scopeId } from "../protocol/rows.ts";
import type { Declared, LocalKey } from "./entities.ts";
import { append } from "./lists.ts";
import { park, pendingIn } from "./park.ts";
import {
  BASE,
  type BaseRecord,
  META,
  OUTBOX,
  type OutboxRecord,
  type Row,
  SCOPE,
  type ScopeRecord,
  targetOf,
} from "./records.ts";
import { mutationsOf, redraw } from "./redraw.ts";
import type { Inside, Store } from "./store.ts";

const ANY_NODE = "f".repeat(16);
const LAST_COUNTER = 0xffff;

/** What became of a run. */
export interface Applied {
  /** Something before it is missing. */
  readonly mustPull: boolean;
  /** The digest was not the server's, and the scope's watermark has been dropped: pull it anew, report it. */
  readonly faulty: boolean;
}

/** How a run came. */
export interface Circumstances {
  /** In the answer to the replica's own latest pull, hello or follow. */
  readonly asked: boolean;
  /** The replica that it was for: by now the tables may be another user's. */
  readonly client: string;
  /** The reading that came with it. */
  readonly clock?: string | null;
}

export class Replica {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** What to tell the server that this replica holds. */
  async watermark(): Promise<Record<string, string>> {
    const held = await this.standings();
    return Object.fromEntries(held.flatMap(({ scope, watermark }) => (watermark === null ? [] : [[scope, watermark]])));
  }

  standings(): Promise<ScopeRecord[]> {
    return this.#store.read([], (inside) => inside.all<ScopeRecord>(SCOPE));
  }

  /** Apply a run: rows, watermark, and the pending edits put back on top, in one transaction. */
  apply(run: Run | Changes, { asked, client, clock = null }: Circumstances): Promise<Applied> {
    return this.#store.write(this.#tablesOf(run.scope), async (inside) => {
      await inside.mustBe(client);
      if (clock !== null) await inside.observe(clock);
      const held = await inside.get<ScopeRecord>(SCOPE, run.scope);
      const step = judge(held ?? NOTHING, run, asked);
      if (step.kind !== "apply") return { mustPull: step.kind === "pull", faulty: false };
      return new Applying(this.#store, inside, run.scope).carryOut(step, held);
    });
  }

  /** A scope may not be read any more: its rows go, its unsent mutations become dead letters. */
  revoke(scope: string, client: string): Promise<void> {
    return this.#leave(scope, client, { code: "revoked", message: `${scope} may not be read any more` });
  }

  /** A scope is not kept on this device any more: its rows go. */
  forget(scope: string, client: string): Promise<void> {
    return this.#leave(scope, client, null);
  }

  /** `why`: its unsent mutations become dead letters; else they are sent as ever. */
  #leave(scope: string, client: string, why: VerdictError | null): Promise<void> {
    return this.#store.write(this.#store.entities.keys(), async (inside) => {
      await inside.mustBe(client);
      const pending = why ? (await pendingIn(inside)).filter((record) => record.scope === scope) : [];
      await park(
        this.#store,
        inside,
        pending.map((mutation) => [mutation, why as VerdictError]),
      );
      const applying = new Applying(this.#store, inside, scope);
      await applying.lapse();
      await applying.forget();
      await applying.redrawAfter(await applying.former());
      await inside.remove(SCOPE, [scope]);
    });
  }

  /** What was applied in a scope that may not be read is never brought back by a pull. */
  async lapseBeyond(readable: readonly string[], client: string): Promise<void> {
    const all = await this.#store.read([], (inside) => inside.all<OutboxRecord>(OUTBOX, { index: "[scope+awaits]" }));
    for (const scope of new Set(all.map((record) => record.scope))) {
      if (readable.includes(scope)) continue;
      await this.#store.write(this.#tablesOf(scope), async (inside) => {
        await inside.mustBe(client);
        const applying = new Applying(this.#store, inside, scope);
        await applying.redrawAfter(await applying.lapse());
      });
    }
  }

  /** The digest of a scope's rows, computed from all of them. */
  async computed(scope: string): Promise<string> {
    return this.#store.read([], async (inside) => {
      const bases = await inside.all<BaseRecord>(BASE, basesOf(scope));
      const rows = bases.map(({ name, version }): [string, string, number] => {
        const [, entity = "", row = ""] = name.split("/");
        return [entity, row, version];
      });
      return ofRows(rows);
    });
  }

  #tablesOf(scope: string): string[] {
    return this.#store.ofKind(parseScope(scope)[0]).map(({ name }) => name);
  }
}

/** One scope within one transaction. */
class Applying {
  readonly #store: Store;
  readonly #inside: Inside;
  readonly #scope: string;
  readonly #id: string;

  constructor(store: Store, inside: Inside, scope: string) {
    this.#store = store;
    this.#inside = inside;
    this.#scope = scope;
    this.#id = scopeId(scope);
  }

  /** A replacement of several pages leaves what was there on the screen until the last of them has come. */
  async carryOut(step: Apply, held: ScopeRecord | undefined): Promise<Applied> {
    const complete = step.copy.to === step.copy.highest;
    const former = step.replace ? step.reset || held !== undefined : held?.former === true;
    if (step.replace) await this.forget();
    const released = step.reset ? await this.#reset() : await this.#release(step);
    const start = step.replace || held === undefined ? { live: 0, total: 0 } : held;
    const { live, total, shared } = await this.#write(step, start);
    const drawn = new Set(step.changes.map(({ entity, row }) => rowName(this.#scope, entity, row)));
    const gone = complete && former ? await this.former() : [];
    const left = step.replace && !complete ? [] : [...released, ...gone].filter((name) => !drawn.has(name));
    await this.redrawAfter([...left, ...[...shared].map((target) => `${this.#scope}/${target}`)]);
    const faulty = step.digest !== null && step.digest !== text(live, total);
    const copy = faulty ? { ...NOTHING, highest: step.copy.highest } : step.copy;
    const digest = faulty ? null : step.digest;
    await this.#inside.put(SCOPE, [{ scope: this.#scope, ...copy, live, total, digest, former: former && !complete }]);
    return { mustPull: false, faulty };
  }

  /** Of no row of the scope is a server's state known any more. */
  forget(): Promise<void> {
    return this.#inside.clear(BASE, basesOf(this.#scope));
  }

  /** The rows that are shown in the scope, and that the server has not. */
  async former(): Promise<string[]> {
    const known = new Set(await this.#inside.keys<string>(BASE, basesOf(this.#scope)));
    const names: string[] = [];
    for (const { name, entity, scopeColumn } of this.#store.ofKind(parseScope(this.#scope)[0])) {
      const keys = await this.#inside.keys<LocalKey>(name, { index: scopeColumn, is: this.#id });
      const rows = keys.map((key) => [key].flat().slice(entity.key.per_scope ? 1 : 0));
      names.push(...rows.map((row) => rowName(this.#scope, name, row.join(":"))));
    }
    return names.filter((name) => !known.has(name));
  }

  async #reset(): Promise<string[]> {
    const replica = await this.#inside.replica();
    await this.#inside.put(META, [{ ...replica, resets: replica.resets + 1 }]);
    return this.lapse();
  }

  /** After a reset or revocation versions awaited mean nothing any more; the rows concerned. */
  lapse(): Promise<string[]> {
    return this.#done(Number.MAX_SAFE_INTEGER, () => true);
  }

  /**
   * What was applied up to the version reached need not stay on top; the rows concerned. Short of the head a row that has
   * changed again comes in a later page: until then what was before it is not to be seen.
   */
  #release({ changes, copy }: Apply): Promise<string[]> {
    if (copy.to === copy.highest) return this.#done(copy.to, () => true);
    const here = new Set(changes.map(({ entity, row }) => targetOf(entity, row)));
    return this.#done(copy.to, ({ target }) => here.has(target));
  }

  async #done(version: number, which: (record: OutboxRecord) => boolean): Promise<string[]> {
    const reached = { index: "[scope+awaits]", from: [this.#scope, 0], upTo: [this.#scope, version] };
    const done = (await this.#inside.all<OutboxRecord>(OUTBOX, reached)).filter(which);
    await this.#inside.remove(
      OUTBOX,
      done.map(({ seq }) => seq),
    );
    return done.map(nameOf);
  }

  redrawAfter(names: string[]): Promise<void> {
    return redraw(this.#store, this.#inside, names);
  }

  /** Write row states; the digest's parts afterwards, and the rows that show more than just these. */
  async #write(step: Apply, start: { live: number; total: number }) {
    const { changes } = step;
    const names = changes.map(({ entity, row }) => rowName(this.#scope, entity, row));
    const held = step.replace ? [] : await this.#inside.getMany<BaseRecord>(BASE, names);
    let { live, total } = start;
    for (const [at, { entity, row, version, doc }] of changes.entries()) {
      const before = held[at];
      if (before !== undefined) {
        live -= 1;
        total -= term(entity, row, before.version);
      }
      if (doc !== null) {
        live += 1;
        total += term(entity, row, version);
      }
    }
    const shared = await this.#shared(changes);
    const bases = changes.flatMap(({ entity, row, version, doc }, at): BaseRecord[] => {
      if (doc === null) return [];
      const name = names[at] as string;
      const target = targetOf(entity, row);
      return [shared.has(target) ? { name, version, doc, hidden: target } : { name, version }];
    });
    await this.#inside.put(BASE, bases);
    await this.#inside.remove(
      BASE,
      changes.flatMap(({ doc }, at) => (doc === null && held[at] !== undefined ? [names[at]] : [])),
    );
    await this.#writeRows(changes.filter(({ entity, row }) => !shared.has(targetOf(entity, row))));
    await this.#see(changes);
    return { live, total: ((total % MODULUS) + MODULUS) % MODULUS, shared };
  }

  async #writeRows(changes: readonly Change[]): Promise<void> {
    const puts = new Map<Declared, Row[]>();
    const deletes = new Map<Declared, LocalKey[]>();
    for (const { entity, row, doc } of changes) {
      const table = this.#store.entities.get(entity);
      if (table === undefined) continue;
      if (doc === null) append(deletes, table, table.localKey(this.#id, row));
      else append(puts, table, table.rowFrom(this.#id, doc));
    }
    for (const [{ name }, keys] of deletes) await this.#inside.remove(name, keys);
    for (const [{ name }, rows] of puts) await this.#inside.put(name, rows);
  }

  /** Rows that are not just what this scope's server says: with mutations on top, or in another scope as well. */
  async #shared(changes: readonly Change[]): Promise<Set<string>> {
    const found = new Set<string>();
    const inside = this.#inside;
    const targets = changes.map(({ entity, row }) => targetOf(entity, row));
    for (const { target } of await mutationsOf(inside, targets)) found.add(target);
    const [kind] = parseScope(this.#scope);
    const scopes = await inside.keys<string>(SCOPE);
    if (!scopes.some((scope) => scope !== this.#scope && scope.startsWith(`${kind}:`))) return found;
    for (const table of this.#store.ofKind(kind)) {
      const own = table.entity.key.per_scope ? [] : changes.filter(({ entity }) => entity === table.name);
      const rows = await inside.getMany<Row>(
        table.name,
        own.map(({ row }) => table.localKey(this.#id, row)),
      );
      for (const [at, { row, doc }] of own.entries()) {
        const shown = rows[at];
        const elsewhere = shown !== undefined && shown[table.scopeColumn] !== this.#id;
        if (elsewhere || doc === null) found.add(targetOf(table.name, row));
      }
    }
    return found;
  }

  /** Writes made after these rows are seen win over them, even if the answer is cut off before its `clock`. */
  async #see(changes: readonly Change[]): Promise<void> {
    let latest = "";
    for (const { doc } of changes) {
      const time = doc?.updated_at;
      if (typeof time === "string" && time > latest) latest = time;
    }
    if (latest !== "") await this.#inside.observe(reading(Date.parse(latest), LAST_COUNTER, ANY_NODE));
  }
}

/** The keys that begin with `scope/`. */
function basesOf(scope: string) {
  return { from: `${scope}/`, below: `${scope}0` };
}

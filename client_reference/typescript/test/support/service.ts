/** A service in memory that merges: sections 2 to 5 in small, for one or several users. */

import type {
  Change,
  Mutation,
  PullRequest,
  PushRequest,
  PushResponse,
  Result,
  Run,
} from "../../src/generated/messages.ts";
import { instant, millisOf, reading } from "../../src/protocol/clock.ts";
import { ofRows } from "../../src/protocol/digest.ts";
import type { Declaration, Fields } from "../../src/protocol/model.ts";
import { keyValues, parseScope, userScope } from "../../src/protocol/rows.ts";
import { latestOf, merge, type RowState } from "./merge.ts";
import type { Time } from "./time.ts";

const NODE = "0".repeat(16);
const MAX_DRIFT = 60_000;

interface Held {
  entity: string;
  row: string;
  version: number;
  state: RowState;
}

interface ScopeState {
  head: number;
  rows: Map<string, Held>;
}

/** What a test may have the service say about a mutation before it looks at it; null: nothing. */
export type Judge = (mutation: Mutation) => Omit<Result, "seq"> | null;

export class Service {
  epoch = "epoch";
  /** What the service's clock is ahead of the test's (ms). */
  ahead = 0;
  /** Who may read and write which shared scopes. */
  members: Record<string, string[]> = {};
  judge: Judge = () => null;
  /** Every mutation that took effect, by `at`: how often. */
  readonly effects = new Map<string, number>();
  readonly #declaration: Declaration;
  readonly #time: Time;
  #scopes = new Map<string, ScopeState>();
  #rejected = new Map<string, Omit<Result, "seq">>();
  #highest = "";

  constructor(declaration: Declaration, time: Time) {
    this.#declaration = declaration;
    this.#time = time;
  }

  get now(): number {
    return this.#time.now + this.ahead;
  }

  /** What the service's clock says. */
  clock(): string {
    const floor = reading(this.now, 0, NODE);
    return [floor, this.#highest].sort()[1] as string;
  }

  readable(user: string): string[] {
    return [userScope(user), ...(this.members[user] ?? [])].sort();
  }

  head(scope: string): number {
    return this.#scope(scope).head;
  }

  // ── push ────────────────────────────────────────────────────────────────────────────────────────────────────────

  push(user: string, { mutations }: Pick<PushRequest, "mutations">): PushResponse {
    const results: Result[] = [];
    let blocked = false;
    for (const unit of unitsOf(mutations)) {
      const before = this.#snapshot();
      const said = unit.map((mutation): Omit<Result, "seq"> => (blocked ? LATER : this.#one(user, mutation)));
      const culprit = said.findIndex(({ status }) => status === "rejected" || status === "retry");
      if (culprit >= 0 && unit.length > 1) {
        this.#restore(before);
        const retry = said[culprit]?.status === "retry";
        for (const at of unit.keys()) if (at !== culprit) said[at] = retry ? LATER : TORN;
      }
      for (const [at, mutation] of unit.entries()) {
        const result = said[at] ?? LATER;
        blocked ||= result.status === "retry";
        if (result.status === "rejected") this.#rejected.set(mutation.at, result);
        results.push({ seq: mutation.seq, ...result });
      }
    }
    return { results, clock: this.clock() };
  }

  #one(user: string, mutation: Mutation): Omit<Result, "seq"> {
    const { op, entity, row, at, fields } = mutation;
    const scope = mutation.scope ?? userScope(user);
    const spent = this.#rejected.get(at);
    if (spent !== undefined) return spent;
    const said = this.judge(mutation);
    if (said !== null) return said;
    const declared = this.#declaration.entities[entity];
    if (declared === undefined) return refused("unknown_entity");
    if (!this.readable(user).includes(scope)) return refused("forbidden");
    if (millisOf(at) > this.now + MAX_DRIFT) {
      return { status: "retry", error: { code: "clock_ahead", message: "the clock is ahead", field: null } };
    }
    const taken = [...this.#scopes].some(
      ([other, { rows }]) => other !== scope && rows.get(`${entity}/${row}`)?.state.deleted === false,
    );
    if (taken && !declared.key.per_scope) return refused("row_taken");
    const held = this.#scope(scope).rows.get(`${entity}/${row}`);
    if (op === "patch" && held === undefined) return refused("row_unknown");
    const effect = merge(held?.state ?? null, { op, at, fields: fields ?? {} });
    if (effect.verdict === "clock_reused") return refused("clock_reused");
    if (effect.took) {
      const broken = Object.entries(declared.fields).find(
        ([name, { ref }]) => ref && fields?.[name] && !this.#isVisible(scope, ref, String(fields[name])),
      );
      if (broken) return refused("ref_missing", broken[0]);
      this.effects.set(at, (this.effects.get(at) ?? 0) + 1);
      this.#store(scope, entity, row, held, effect.state);
    }
    const version = this.#scope(scope).rows.get(`${entity}/${row}`)?.version ?? 0;
    return effect.verdict === "applied" ? { status: "applied", scope, version } : { status: "superseded" };
  }

  #store(scope: string, entity: string, row: string, held: Held | undefined, state: RowState): void {
    const latest = latestOf(state);
    if (latest > this.#highest) this.#highest = latest;
    const known = this.#scope(scope);
    const shows = !state.deleted || held?.state.deleted === false;
    if (shows) known.head += 1;
    known.rows.set(`${entity}/${row}`, { entity, row, version: shows ? known.head : (held?.version ?? 0), state });
  }

  // ── writes of others ────────────────────────────────────────────────────────────────────────────────────────────

  /** Somebody else's write, made now; its version. */
  write(scope: string, op: "put" | "patch" | "delete", entity: string, row: string, fields: Fields = {}): number {
    const floor = this.clock();
    const at = reading(
      Math.max(millisOf(floor), this.now),
      Number.parseInt(floor.slice(13, 17), 16) + 1,
      "e".repeat(16),
    );
    const held = this.#scope(scope).rows.get(`${entity}/${row}`);
    const declared = this.#declaration.entities[entity]?.fields ?? {};
    const initial = Object.fromEntries(Object.entries(declared).map(([name, field]) => [name, field.default ?? null]));
    const whole = op === "put" ? { ...initial, ...fields } : fields;
    const { took, state } = merge(held?.state ?? null, { op, at, fields: whole });
    if (took) this.#store(scope, entity, row, held, state);
    return this.#scope(scope).rows.get(`${entity}/${row}`)?.version ?? 0;
  }

  /** A restore from a back-up: other contents under another epoch. */
  renew(epoch: string, scopes: readonly string[] = []): void {
    this.epoch = epoch;
    for (const scope of scopes) this.#scopes.delete(scope);
  }

  /** The same rows under another epoch, their versions made anew: what was said of the old ones means nothing now. */
  renumber(epoch: string): void {
    this.epoch = epoch;
    for (const known of this.#scopes.values()) {
      const held = [...known.rows].sort(([, one], [, two]) => one.version - two.version);
      known.rows = new Map(held.map(([name, row], at) => [name, { ...row, version: at + 1 }]));
      known.head = held.length;
    }
  }

  // ── pull ────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** The live rows of a scope, by entity and row. */
  rows(scope: string): Map<string, Fields> {
    const live = [...this.#scope(scope).rows.values()].filter(({ state }) => !state.deleted);
    return new Map(live.map((held) => [`${held.entity}/${held.row}`, this.#document(held)]));
  }

  digest(scope: string): string {
    const live = [...this.#scope(scope).rows.values()].filter(({ state }) => !state.deleted);
    return ofRows(live.map(({ entity, row, version }): [string, string, number] => [entity, row, version]));
  }

  /** What a pull brings: all runs, and the last line. */
  pull(user: string, { schema, watermark, scopes, limit = 1_000 }: Omit<PullRequest, "client">) {
    const readable = this.readable(user).filter((scope) => !scopes || scopes.includes(scope));
    const named = Object.keys(watermark ?? {});
    const runs = readable.flatMap((scope) => this.#runs(scope, schema, watermark?.[scope], limit));
    const revoked = named.filter((scope) => !this.readable(user).includes(scope));
    return { runs, trailer: { readable, revoked, clock: this.clock() } };
  }

  #runs(scope: string, schema: number, watermark: string | undefined, limit: number): Run[] {
    const { head, rows } = this.#scope(scope);
    const [epoch, version, , number] = watermark?.split(".") ?? [];
    const held = Number(version);
    const reset = watermark !== undefined && !(epoch === this.epoch && number === `${schema}` && held <= head);
    let from = watermark === undefined || reset ? 0 : held;
    if (from === head && watermark !== undefined && !reset) return [];
    const news = [...rows.values()]
      .filter((row) => row.version > from && (from > 0 || !row.state.deleted))
      .sort((one, two) => one.version - two.version);
    const runs: Run[] = [];
    do {
      const page = news.splice(0, limit);
      const to = news.length === 0 ? head : (page.at(-1)?.version ?? head);
      const run: Run = {
        scope,
        from,
        to,
        head,
        watermark: `${this.epoch}.${to}.0.${schema}`,
        changes: page.map((row) => this.#change(row)),
        reset: reset && from === 0,
      };
      runs.push(to === head ? { ...run, digest: this.digest(scope) } : run);
      from = to;
    } while (news.length > 0);
    return runs;
  }

  #change(held: Held): Change {
    const { entity, row, version, state } = held;
    return { entity, row, version, doc: state.deleted ? null : this.#document(held) };
  }

  #document({ entity, row, state }: Held): Fields {
    const declared = this.#declaration.entities[entity];
    if (declared === undefined) throw new Error(entity);
    const values = keyValues(declared, row);
    const key = Object.fromEntries(declared.key.columns.map((column, at) => [column, values[at] ?? ""]));
    return { ...key, ...state.fields, created_at: instant(state.created), updated_at: instant(latestOf(state)) };
  }

  // ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

  #scope(scope: string): ScopeState {
    parseScope(scope);
    const found = this.#scopes.get(scope) ?? { head: 0, rows: new Map() };
    this.#scopes.set(scope, found);
    return found;
  }

  #isVisible(scope: string, entity: string, row: string): boolean {
    return this.#scope(scope).rows.get(`${entity}/${row}`)?.state.deleted === false;
  }

  #snapshot() {
    const scopes = [...this.#scopes].map(([name, { head, rows }]): [string, ScopeState] => [
      name,
      { head, rows: new Map(rows) },
    ]);
    return { scopes: new Map(scopes), highest: this.#highest };
  }

  #restore({ scopes, highest }: { scopes: Map<string, ScopeState>; highest: string }): void {
    this.#scopes = scopes;
    this.#highest = highest;
  }
}

const LATER: Omit<Result, "seq"> = { status: "retry", error: { code: "unavailable", message: "behind another" } };
const TORN = refused("group_rejected");

/** A verdict `rejected`. */
export function refused(code: string, field: string | null = null): Omit<Result, "seq"> {
  return { status: "rejected", error: { code, message: `it is ${code}`, field } };
}

/** A verdict `retry`. */
export function later(code: string): Omit<Result, "seq"> {
  return { status: "retry", error: { code, message: "not now", field: null } };
}

function unitsOf(mutations: readonly Mutation[]): Mutation[][] {
  const found: Mutation[][] = [];
  for (const mutation of mutations) {
    const last = found.at(-1);
    if (last && mutation.group && last[0]?.group === mutation.group) last.push(mutation);
    else found.push([mutation]);
  }
  return found;
}

/**
 * The arithmetic of a client's outbox (SPEC 2, 3 and 4).
 *
 * A client keeps its mutations in the order it made them. Here is what to send next, what a verdict means, who depends
 * on whom, when readings are corrected, and what a row looks like with the pending edits on top. Keeping it all, in one
 * transaction with the rows, is the store's part. Nothing here changes what it is given.
 */

import { MAX_BYTES, MAX_MUTATIONS, MUTATION_REMEDIES, type MutationCode, type Remedy } from "../generated/codes.ts";
import type { Mutation, Result, VerdictError } from "../generated/messages.ts";
import { type Clock, instant } from "./clock.ts";
import type { Entity, Fields, Json } from "./model.ts";
import { escapeKey, sameValue, split } from "./paths.ts";
import { keyValues } from "./rows.ts";

/** Room for a push without its mutations. */
export const ENVELOPE_BYTES = 128;

export type Op = "put" | "patch" | "delete";

/** One mutation in the outbox. */
export interface Pending {
  /** Its place in the order. */
  readonly seq: number;
  readonly op: Op;
  readonly scope: string;
  readonly entity: string;
  readonly row: string;
  readonly at: string;
  /** Null for a delete. */
  readonly fields: Fields | null;
  /** The schema number it was written under. */
  readonly schema: number;
  /** The device's own time when it was made, uncorrected (ms). */
  readonly wall: number;
  readonly group?: string | null;
  /** It has been given to the transport. */
  readonly handed: boolean;
  /** It was applied, and its effect stays on top of its row until the scope's replica has reached this version. */
  readonly awaits?: number | null;
}

/** Scope, entity and key of a row as one text; neither a scope nor an entity's name holds a slash. */
export function rowName(scope: string, entity: string, row: string): string {
  return `${scope}/${entity}/${row}`;
}

// ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A mutation as it travels. */
export function wire({ seq, op, entity, scope, row, at, fields, group }: Pending): Mutation {
  return { seq, op, entity, scope, row, at, ...(op === "delete" ? {} : { fields }), ...(group ? { group } : {}) };
}

/** What stands or falls together: neighbours of one group and one schema number, any other mutation alone. */
export function* units(pending: Iterable<Pending>): Generator<Pending[]> {
  let unit: Pending[] = [];
  for (const mutation of pending) {
    const last = unit.at(-1);
    if (last && !(mutation.group && mutation.group === last.group && mutation.schema === last.schema)) {
      yield unit;
      unit = [];
    }
    unit.push(mutation);
  }
  if (unit.length > 0) yield unit;
}

/**
 * The mutations of the next push: from the front, of one schema number, no group split.
 *
 * The first unit is taken even beyond the limits: only the server can say that it is too much.
 */
export function batch(
  pending: Iterable<Pending>,
  { maxMutations = MAX_MUTATIONS, maxBytes = MAX_BYTES }: { maxMutations?: number; maxBytes?: number } = {},
): Pending[] {
  const taken: Pending[] = [];
  let size = ENVELOPE_BYTES;
  for (const unit of units(pending)) {
    for (const mutation of unit) size += utf8Length(JSON.stringify(wire(mutation))) + 1;
    const fits = taken.length + unit.length <= maxMutations && size <= maxBytes;
    if (taken.length > 0 && !(fits && unit[0]?.schema === taken[0]?.schema)) break;
    taken.push(...unit);
  }
  return taken;
}

/** Bytes of a text in UTF-8. */
export function utf8Length(text: string): number {
  let bytes = text.length;
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    // Each half of a surrogate pair is two of its four bytes.
    if (unit > 0x7f) bytes += unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 1 : 2;
  }
  return bytes;
}

/** How many mutations to send after a push was refused whole with 400 or 413; null: it cannot be divided. */
export function halved(refused: readonly Pending[]): number | null {
  const [first = []] = units(refused);
  return first.length === refused.length ? null : Math.max(1, refused.length >> 1);
}

// ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What the verdicts on a push mean: every mutation sent is in exactly one of the lists, in order. */
export interface Settled {
  /** With the version to await (0: nothing to wait for). */
  readonly applied: [mutation: Pending, version: number][];
  readonly superseded: Pending[];
  readonly rejected: [mutation: Pending, error: VerdictError][];
  readonly kept: Pending[];
  /** Why `kept` are kept: the first reason that is more than `unavailable`, which those behind it answer. */
  readonly obstacle: VerdictError | null;
  /** What to do about the obstacle; a code from a later version of the protocol is waited for. */
  readonly remedy: Remedy;
}

/** Read the verdicts by `seq`, of several the first; what was not answered is kept. */
export function settle(sent: readonly Pending[], results: Iterable<Result>): Settled {
  const verdicts = new Map<number, Result>();
  for (const result of results) if (!verdicts.has(result.seq)) verdicts.set(result.seq, result);
  const applied: Settled["applied"] = [];
  const superseded: Pending[] = [];
  const rejected: Settled["rejected"] = [];
  const kept: Pending[] = [];
  let obstacle: VerdictError | null = null;
  for (const mutation of sent) {
    const verdict = verdicts.get(mutation.seq);
    if (verdict?.status === "applied") applied.push([mutation, verdict.version ?? 0]);
    else if (verdict?.status === "superseded") superseded.push(mutation);
    else if (verdict?.status === "rejected") {
      const error = verdict.error ?? { code: "rejected", message: "the service gave no reason", field: null };
      rejected.push([mutation, error]);
    } else {
      kept.push(mutation);
      const silence = { code: "unavailable", message: "the answer said nothing about it", field: null };
      const why: VerdictError = verdict?.error ?? silence;
      if (obstacle === null || (obstacle.code === "unavailable" && why.code !== "unavailable")) obstacle = why;
    }
  }
  return { applied, superseded, rejected, kept, obstacle, remedy: remedyOf(obstacle?.code) };
}

function remedyOf(code = ""): Remedy {
  return (Object.hasOwn(MUTATION_REMEDIES, code) && MUTATION_REMEDIES[code as MutationCode]) || "retry";
}

/** What `dependents` asks of the store. */
export interface Surroundings {
  /** An entity's `ref` fields. */
  refs(entity: string): Iterable<{ readonly name: string; readonly ref: string }>;
  /** Whether a row, by its `rowName`, is visible without any mutation of the outbox. */
  stands(name: string): boolean;
}

/**
 * Mutations, pending or `parked`, that make no sense without a parked one: their seq → the seq of the one they lean on.
 *
 * A patch or delete leans on the put that made its row, a value of a `ref` field on the put that made the row it
 * names, and a group on each of its members' needs: the first of these counts. What else is pending of a parked
 * mutation's group leans on that.
 */
export function dependents(
  parked: Iterable<Pending>,
  pending: Iterable<Pending>,
  { refs, stands }: Surroundings,
): Map<number, number> {
  const gone = new Map([...parked].map((mutation) => [mutation.seq, mutation]));
  const causes = new Map<number, number>();
  const everything = new Map([...pending, ...gone.values()].map((mutation) => [mutation.seq, mutation]));
  /** Rows that a mutation which is gone would have made, by whose put. */
  const missing = new Map<string, number>();
  const visible = new Map<string, boolean>();
  for (const unit of units([...everything.values()].sort((one, two) => one.seq - two.seq))) {
    const fallen = unit.find((mutation) => gone.has(mutation.seq))?.seq;
    let lost: number | undefined;
    const within = new Map<string, boolean>();
    for (const mutation of unit) {
      for (const name of needs(mutation, refs)) {
        if (missing.has(name) && !(within.get(name) ?? visible.get(name) ?? stands(name))) lost ??= missing.get(name);
      }
      if (mutation.op !== "patch") within.set(nameOf(mutation), mutation.op === "put");
    }
    if ((lost ?? fallen) === undefined) {
      for (const [name, shown] of within) visible.set(name, shown);
      continue;
    }
    for (const mutation of unit) {
      const cause = lost ?? (gone.has(mutation.seq) ? undefined : fallen);
      if (cause !== undefined) causes.set(mutation.seq, cause);
      if (mutation.op === "put") missing.set(nameOf(mutation), mutation.seq);
    }
  }
  return causes;
}

/** The name of the row that a mutation writes. */
export function nameOf({ scope, entity, row }: Pick<Pending, "scope" | "entity" | "row">): string {
  return rowName(scope, entity, row);
}

/** The rows that must be visible for a mutation to make sense. */
function* needs(mutation: Pending, refs: Surroundings["refs"]): Generator<string> {
  if (mutation.op !== "put") yield nameOf(mutation);
  for (const { name, ref } of mutation.fields ? refs(mutation.entity) : []) {
    const target = mutation.fields?.[name] ?? null;
    if (target !== null) yield rowName(mutation.scope, ref, String(target));
  }
}

// ── readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * New readings, in the same order, by a corrected clock (SPEC 2).
 *
 * `offset` is the server's time less the device's, `now` the server's time (ms): nothing was made later than now.
 * `own` stands at the highest reading that was received or keeps its place.
 */
export function restamp(
  pending: Iterable<Pending>,
  own: Clock,
  { offset, now }: { offset: number; now: number },
): Pending[] {
  return Array.from(pending, (mutation) => ({
    ...mutation,
    at: own.issue(Math.min(mutation.wall + offset, now)),
    handed: false,
  }));
}

// ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A row as its device shows it: the server's document (null: no row) with the outbox's mutations of it on top. */
export function onTop(doc: Fields | null, mutations: Iterable<Pending>, entity: Entity): Fields | null {
  let shown = doc;
  for (const { op, row, at, fields } of mutations) {
    if (op === "delete") shown = null;
    else if (op === "put") {
      const values = keyValues(entity, row);
      const key = Object.fromEntries(entity.key.columns.map((column, place) => [column, values[place] ?? ""]));
      const made = shown?.created_at ?? instant(at);
      shown = { ...key, ...fields, created_at: made, updated_at: instant(at) };
    } else if (shown !== null) shown = { ...patched(shown, fields ?? {}), updated_at: instant(at) };
  }
  return shown;
}

function patched(doc: Fields, fields: Fields): Fields {
  const after = { ...doc };
  for (const [path, value] of Object.entries(fields)) {
    const [field, key] = split(path);
    if (key === null) after[field] = value;
    else {
      const { [key]: _, ...others } = entriesOf(after[field]);
      after[field] = value === null ? others : { ...others, [key]: value };
    }
  }
  return after;
}

/** The patch that turns what `doc` holds into `wanted` (field → value), maps key by key; empty if none is needed. */
export function changed(doc: Fields, wanted: Fields, maps: ReadonlySet<string>): Fields {
  const patch: Fields = {};
  for (const [field, value] of Object.entries(wanted)) {
    if (!maps.has(field)) {
      if (!sameValue(doc[field], value)) patch[field] = value;
      continue;
    }
    const held = new Map(Object.entries(entriesOf(doc[field])));
    const entries = new Map(Object.entries(entriesOf(value)));
    for (const key of held.keys()) if (!entries.has(key)) patch[`${field}/${escapeKey(key)}`] = null;
    for (const [key, entry] of entries) {
      if (!sameValue(held.get(key), entry)) patch[`${field}/${escapeKey(key)}`] = entry;
    }
  }
  return patch;
}

/** The entries of a map's value; a map that is not there has none. */
function entriesOf(value: Json | undefined): Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};
}

/** The outbox and the dead letters: every mutation is in exactly one place until it is done (SPEC 4, I25, I26). */

import { MAX_MUTATIONS } from "../generated/codes.ts";
import type { Result, VerdictError } from "../generated/messages.ts";
import { batch, dependents, nameOf, type Pending, restamp, rowName, type Settled, settle } from "../protocol/outbox.ts";
import {
  BASE,
  LETTERS,
  type LetterRecord,
  META,
  OUTBOX,
  type OutboxRecord,
  type ReplicaRecord,
  SCOPE,
  type ScopeRecord,
} from "./records.ts";
import { redraw } from "./redraw.ts";
import type { Inside, Store } from "./store.ts";

/** How many wait, and since when (the device's own ms). */
export interface Waiting {
  readonly pending: number;
  readonly since: number | null;
  readonly rejected: number;
}

const QUEUED = { index: "queued", is: 1 };

export class Outbox {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  // ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

  /** What the server has not answered yet, in order. */
  pending(): Promise<OutboxRecord[]> {
    return this.#store.read([], pendingIn);
  }

  waiting(): Promise<Waiting> {
    return this.#store.read([], async (inside) => {
      const [pending, [first], rejected] = await Promise.all([
        inside.count(OUTBOX, QUEUED),
        inside.all<OutboxRecord>(OUTBOX, { ...QUEUED, limit: 1 }),
        inside.count(LETTERS),
      ]);
      return { pending, since: first?.wall ?? null, rejected };
    });
  }

  // ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * The mutations of the next push, at most `limit` unless one group is more; [] if there is nothing to send. That they
   * are given to the transport is noted before it happens: their readings stand from now on. `who` they are of is
   * looked up in the same moment.
   */
  handOver(limit: number): Promise<{ sending: Pending[]; who: ReplicaRecord }> {
    return this.#store.write([], async (inside) => {
      const sending = batch(await upcoming(inside, limit), { maxMutations: limit }) as OutboxRecord[];
      const stamped = sending.filter(({ handed }) => !handed).map((record) => ({ ...record, handed: true }));
      await inside.put(OUTBOX, stamped);
      return { sending: sending.map((record) => ({ ...record, handed: true })), who: await inside.replica() };
    });
  }

  /**
   * Take the answer to a push in: verdicts, clock, and what they mean for rows, in one transaction. `lapsed`: there was
   * a reset since it was sent, so that the versions in it mean nothing any more.
   */
  settle(sent: readonly Pending[], results: readonly Result[], clock: string, lapsed: boolean): Promise<Settled> {
    // A rejection may reach rows of any table, by the groups that lean on it.
    return this.#store.write(this.#store.entities.keys(), async (inside) => {
      // Another tab may have settled some of it, or its user may have thrown it away.
      const held = new Map((await standing(inside, sent)).map((record) => [record.seq, record]));
      const settled = settle(
        sent.filter(({ seq, at }) => held.get(seq)?.at === at && held.get(seq)?.queued),
        results,
      );
      await inside.observe(clock);
      const scopes = await inside.all<ScopeRecord>(SCOPE);
      const reached = new Map(scopes.map(({ scope, to }) => [scope, to]));
      const done: Pending[] = [...settled.superseded];
      const awaiting: OutboxRecord[] = [];
      for (const [mutation, version] of settled.applied) {
        const record = held.get(mutation.seq);
        if (record === undefined || lapsed || version <= (reached.get(mutation.scope) ?? 0)) done.push(mutation);
        else awaiting.push(awaited(record, version));
      }
      for (const { at } of awaiting.slice(-1)) await inside.observe(at);
      await inside.put(OUTBOX, awaiting);
      await this.#remove(inside, done);
      await this.#park(inside, settled.rejected);
      return settled;
    });
  }

  /** Stamp anew, by a corrected clock, everything from `seq` on, or (null) what was never handed over (SPEC 2). */
  async correct(seq: number | null, offset: number, now: number): Promise<void> {
    const { node } = this.#store;
    await this.#store.write([], async (inside) => {
      await inside.put(META, [{ ...(await inside.replica()), offset }]);
      const all = await pendingIn(inside);
      const stale = seq === null ? all.filter(({ handed }) => !handed) : all.filter((record) => record.seq >= seq);
      const [first] = stale;
      if (first === undefined) return;
      const stamped = restamp(stale, await inside.clock(node, first.seq), { offset, now });
      await inside.put(OUTBOX, stamped);
    });
  }

  /** A scope may not be read any more: its unsent mutations become dead letters. */
  async parkScope(scope: string): Promise<void> {
    const error = { code: "revoked", message: `${scope} may not be read any more` };
    await this.#parkSome((record) => record.scope === scope, error);
  }

  /** A unit that is refused whole, alone, becomes dead letters. */
  async parkAll(sent: readonly Pending[], error: VerdictError): Promise<void> {
    const seqs = new Set(sent.map(({ seq }) => seq));
    await this.#parkSome((record) => seqs.has(record.seq), error);
  }

  async #parkSome(which: (record: OutboxRecord) => boolean, error: VerdictError): Promise<void> {
    await this.#store.write(this.#store.entities.keys(), async (inside) => {
      const found = (await pendingIn(inside)).filter(which);
      await this.#park(
        inside,
        found.map((mutation) => [mutation, error]),
      );
    });
  }

  // ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Take rejected mutations out, with those pending that depend on them, and keep them all. */
  async #park(inside: Inside, rejected: Settled["rejected"]): Promise<void> {
    if (rejected.length === 0) return;
    const parked = this.#store.chance.now();
    const letters = new Map(
      rejected.map(([mutation, error]) => [mutation.seq, letterOf(mutation, error, null, parked)]),
    );
    const gone = rejected.map(([mutation]) => mutation);
    const pending = await pendingIn(inside);
    for (const [seq, cause] of await this.#dependents(inside, gone, pending)) {
      const mutation = pending.find((record) => record.seq === seq);
      const message = `it builds on change ${cause}, which was not accepted`;
      if (mutation) letters.set(seq, letterOf(mutation, { code: "depends", message }, cause, parked));
    }
    await inside.put(LETTERS, [...letters.values()]);
    await this.#remove(
      inside,
      [...letters.values()].map(({ mutation }) => mutation),
    );
  }

  async #dependents(
    inside: Inside,
    gone: readonly Pending[],
    pending: readonly Pending[],
  ): Promise<Map<number, number>> {
    const refs = (entity: string) => this.#store.entities.get(entity)?.refs ?? [];
    // Asked of rows one by one, while nothing can be awaited: so all that may be asked for is looked up before.
    const names = new Set<string>();
    for (const { scope, entity, row, fields } of pending) {
      names.add(rowName(scope, entity, row));
      for (const { name, ref } of refs(entity))
        if (fields?.[name]) names.add(rowName(scope, ref, String(fields[name])));
    }
    const list = [...names];
    const bases = await inside.getMany(BASE, list);
    const visible = new Map(list.map((name, at) => [name, bases[at] !== undefined]));
    for (const { scope, entity, row, op } of await inside.all<OutboxRecord>(OUTBOX, { index: "[scope+awaits]" })) {
      visible.set(rowName(scope, entity, row), op !== "delete");
    }
    return dependents(gone, pending, { refs, stands: (name) => visible.get(name) === true });
  }

  /** Take mutations out of the outbox; their rows show what is left. */
  async #remove(inside: Inside, mutations: readonly Pending[]): Promise<void> {
    let latest = "";
    for (const { at, handed } of mutations) if (handed && at > latest) latest = at;
    if (latest !== "") await inside.observe(latest);
    await inside.remove(
      OUTBOX,
      mutations.map(({ seq }) => seq),
    );
    await redraw(this.#store, inside, mutations.map(nameOf));
  }
}

/** What the server has not answered yet, in order. */
export function pendingIn(inside: Inside): Promise<OutboxRecord[]> {
  return inside.all<OutboxRecord>(OUTBOX, QUEUED);
}

/** The first `count` of them, and the rest of the last one's group. */
async function upcoming(inside: Inside, count: number): Promise<OutboxRecord[]> {
  const found = await inside.all<OutboxRecord>(OUTBOX, { ...QUEUED, limit: count });
  const last = found.at(-1);
  if (!last?.group) return found;
  for (const next of await inside.all<OutboxRecord>(OUTBOX, { above: last.seq, limit: MAX_MUTATIONS })) {
    if (next.group !== last.group) break;
    found.push(next);
  }
  return found;
}

function awaited({ queued: _, ...record }: OutboxRecord, version: number): OutboxRecord {
  return { ...record, awaits: version };
}

/** Those of the mutations that are still in the outbox, as they stand there. */
async function standing(inside: Inside, mutations: readonly Pending[]): Promise<OutboxRecord[]> {
  const held = await inside.getMany<OutboxRecord>(
    OUTBOX,
    mutations.map(({ seq }) => seq),
  );
  return held.filter((record) => record !== undefined);
}

function letterOf(mutation: Pending, error: VerdictError, cause: number | null, parked: number): LetterRecord {
  const { code, message, field } = error;
  return { seq: mutation.seq, mutation, code, message, field: field ?? null, cause, parked };
}

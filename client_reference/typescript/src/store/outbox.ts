/** The outbox and the dead letters: every mutation is in exactly one place until it is done (SPEC 4, I25, I26). */

import { MAX_MUTATIONS } from "../generated/codes.ts";
import type { PushResponse, VerdictError } from "../generated/messages.ts";
import type { Fields } from "../protocol/model.ts";
import { batch, type Op, type Pending, restamp, type Settled, settle } from "../protocol/outbox.ts";
import { park, pendingIn, QUEUED, remove } from "./park.ts";
import { LETTERS, META, OUTBOX, type OutboxRecord, type ReplicaRecord, SCOPE, type ScopeRecord } from "./records.ts";
import type { Inside, Store } from "./store.ts";

/** One mutation that the service has not answered yet. */
export interface Outgoing {
  readonly seq: number;
  readonly op: Op;
  readonly scope: string;
  readonly entity: string;
  readonly row: string;
  readonly fields: Fields | null;
  /** When it was made (the device's own ms). */
  readonly made: number;
}

/** How many wait, and since when (the device's own ms). */
export interface Waiting {
  readonly pending: number;
  readonly since: number | null;
  readonly rejected: number;
}

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
   * Take the answer to a push in: verdicts, clock, and what they mean for rows, in one transaction. `who` sent it: if
   * there was a reset since, the versions in it mean nothing any more. `kept`: the scopes of which rows come (null: all).
   */
  settle(
    sent: readonly Pending[],
    { results, clock }: PushResponse,
    { client, resets }: Pick<ReplicaRecord, "client" | "resets">,
    kept: readonly string[] | null,
  ): Promise<Settled> {
    // A rejection may reach rows of any table, by the groups that lean on it.
    return this.#store.write(this.#store.entities.keys(), async (inside) => {
      await inside.mustBe(client);
      // Another tab may have settled some of it, or its user may have thrown it away.
      const held = new Map((await standing(inside, sent)).map((record) => [record.seq, record]));
      const settled = settle(
        sent.filter(({ seq, at }) => held.get(seq)?.at === at && held.get(seq)?.queued),
        results,
      );
      await inside.observe(clock);
      const lapsed = (await inside.replica()).resets !== resets;
      const scopes = await inside.all<ScopeRecord>(SCOPE);
      // Short of the head a row that has changed again comes in a later page: until then its edit stays on top.
      const reached = new Map(scopes.map(({ scope, to, highest }) => [scope, to === highest ? to : 0]));
      const done: Pending[] = [...settled.superseded];
      const awaiting: OutboxRecord[] = [];
      for (const [mutation, version] of settled.applied) {
        const record = held.get(mutation.seq);
        const comes = !lapsed && (kept === null || kept.includes(mutation.scope));
        if (record === undefined || !comes || version <= (reached.get(mutation.scope) ?? 0)) done.push(mutation);
        else awaiting.push(awaited(record, version));
      }
      for (const { at } of awaiting.slice(-1)) await inside.observe(at);
      await inside.put(OUTBOX, awaiting);
      await remove(this.#store, inside, done);
      await park(this.#store, inside, settled.rejected);
      return settled;
    });
  }

  /** Stamp anew, by a corrected clock, everything from `seq` on, or (null) what was never handed over (SPEC 2). */
  async correct(seq: number | null, offset: number, now: number): Promise<void> {
    await this.#store.write([], async (inside) => {
      // Another node: no reading that was issued by the wrong clock comes a second time.
      const node = this.#store.renewNode();
      await inside.put(META, [{ ...(await inside.replica()), offset }]);
      const all = await pendingIn(inside);
      const stale = seq === null ? all.filter(({ handed }) => !handed) : all.filter((record) => record.seq >= seq);
      const [first] = stale;
      const stamped = first ? restamp(stale, await inside.clock(node, first.seq), { offset, now }) : all.slice(-1);
      await inside.put(OUTBOX, stamped);
      await inside.put(META, [{ ...(await inside.replica()), issued: stamped.at(-1)?.at ?? null }]);
    });
  }

  /** A unit that is refused whole, alone, becomes dead letters. */
  async refuse(sent: readonly Pending[], error: VerdictError, client: string): Promise<void> {
    await this.#store.write(this.#store.entities.keys(), async (inside) => {
      await inside.mustBe(client);
      const held = (await standing(inside, sent)).filter(({ queued }) => queued);
      await park(
        this.#store,
        inside,
        held.map((mutation) => [mutation, error]),
      );
    });
  }
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

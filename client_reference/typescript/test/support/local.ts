/** A store without a service: tables, capture, replica, outbox and letters of one tab. */

// Before Dexie: its live queries look for an IndexedDB when it is loaded.
import "fake-indexeddb/auto";

import Dexie, { type Table } from "dexie";
import type { Change, Result, Run } from "../../src/generated/messages.ts";
import { reading } from "../../src/protocol/clock.ts";
import { text } from "../../src/protocol/digest.ts";
import type { Fields } from "../../src/protocol/model.ts";
import type { Pending, Settled } from "../../src/protocol/outbox.ts";
import type { Schema, TableTypes } from "../../src/schema.ts";
import { Capture } from "../../src/store/capture.ts";
import { Letters } from "../../src/store/letters.ts";
import { Outbox } from "../../src/store/outbox.ts";
import {
  type BaseRecord,
  type LetterRecord,
  type OutboxRecord,
  type ReplicaRecord,
  type ScopeRecord,
  STORES,
} from "../../src/store/records.ts";
import { type Applied, Replica } from "../../src/store/replica.ts";
import { Store } from "../../src/store/store.ts";
import { become, identify } from "../../src/store/users.ts";
import { Device } from "./device.ts";
import { type Note, type Seat, schema, type Tables, type Tag, type Task } from "./schema.ts";
import { chance, Time } from "./time.ts";

type TableOf<E extends TableTypes> = Table<E["row"], E["key"], E["insert"]>;

export interface LocalOptions {
  readonly time?: Time;
  readonly device?: Device;
  readonly user?: string | null;
  readonly schema?: Schema<Tables>;
}

/** What a run leaves to say, beside its scope and changes. */
export interface Told extends Partial<Omit<Run, "scope" | "changes">> {}

export class Local {
  readonly time: Time;
  readonly device: Device;
  readonly db: Dexie;
  readonly store: Store;
  readonly outbox: Outbox;
  readonly replica: Replica;
  readonly letters: Letters;
  readonly capture: Capture;
  /** How many commits have put something into the outbox. */
  commits = 0;

  private constructor({ time = new Time(), device = new Device(), schema: given = schema }: LocalOptions) {
    this.time = time;
    this.device = device;
    this.db = new Dexie(device.name, device.life().dexie);
    this.store = new Store(this.db, given.declaration, chance(time));
    this.capture = new Capture(this.store, () => {
      this.commits += 1;
    });
    this.outbox = new Outbox(this.store);
    this.replica = new Replica(this.store);
    this.letters = new Letters(this.store, () => this.capture.divide());
    this.db.use(this.capture);
    const own = { ...given.stores, drafts: "++id, text" };
    this.db.version(given.declaration.schema).stores({ ...own, ...STORES });
  }

  /** An open store of ann's, unless somebody else is named. */
  static async open(options: LocalOptions = {}): Promise<Local> {
    const { user = "ann" } = options;
    const made = new Local(options);
    await made.db.open();
    await identify(made.store);
    if (user !== null) await become(made.store, user);
    made.store.user = user;
    return made;
  }

  get notes(): TableOf<Tables["notes"]> {
    return this.db.table<Note, string, Tables["notes"]["insert"]>("notes");
  }

  get tasks(): TableOf<Tables["tasks"]> {
    return this.db.table<Task, string, Tables["tasks"]["insert"]>("tasks");
  }

  get tags(): TableOf<Tables["tags"]> {
    return this.db.table<Tag, [string, string], Tables["tags"]["insert"]>("tags");
  }

  get seats(): TableOf<Tables["seats"]> {
    return this.db.table<Seat, [string, string], Tables["seats"]["insert"]>("seats");
  }

  /** A table of the app's own, that is not synchronised. */
  get drafts(): Table<{ id?: number; text: string }, number> {
    return this.db.table("drafts");
  }

  records(): Promise<OutboxRecord[]> {
    return this.db.table<OutboxRecord>("sync_outbox").toArray();
  }

  /** What the outbox holds, in a nutshell. */
  async said(): Promise<[op: string, row: string, fields: Fields | null][]> {
    return (await this.records()).map(({ op, row, fields }) => [op, row, fields]);
  }

  bases(): Promise<BaseRecord[]> {
    return this.db.table<BaseRecord>("sync_base").toArray();
  }

  parked(): Promise<LetterRecord[]> {
    return this.db.table<LetterRecord>("sync_dead_letter").toArray();
  }

  scope(scope: string): Promise<ScopeRecord | undefined> {
    return this.db.table<ScopeRecord>("sync_scope").get(scope);
  }

  async meta(): Promise<ReplicaRecord> {
    return (await this.db.table<ReplicaRecord>("sync_meta").get("replica")) as ReplicaRecord;
  }

  /** Apply a run from where the replica stands, or from what is told. */
  async apply(scope: string, changes: Change[], told: Told = {}, asked = false): Promise<Applied> {
    const from = told.from ?? (await this.scope(scope))?.to ?? 0;
    const to = told.to ?? Math.max(from, ...changes.map(({ version }) => version));
    const run: Run = { scope, from, to, head: to, watermark: `epoch.${to}.0.3`, changes, ...told };
    return this.replica.apply(run, { asked, client: (await this.meta()).client });
  }

  /** The mutations of the next push, given to the transport. */
  async handOver(limit = 1_000): Promise<Pending[]> {
    return (await this.outbox.handOver(limit)).sending;
  }

  /** Take in what one verdict says about the first of those sent. */
  async settle([first, ...rest]: readonly Pending[], verdict: Partial<Result>): Promise<Settled> {
    const result: Result = { seq: first?.seq ?? 0, status: "applied", ...verdict };
    const answer = { results: [result], clock: reading(this.time.now, 0, "0".repeat(16)) };
    return this.outbox.settle(first ? [first, ...rest] : [], answer, await this.meta(), null);
  }

  /**
   * Hand everything over, and take this answer to it in: `applied` unless a row's verdict is given. `meanwhile` happens
   * before the answer is there.
   */
  async answer(
    verdicts: Record<string, Partial<Result>>,
    version: number,
    meanwhile?: () => Promise<unknown>,
  ): Promise<Settled> {
    const { sending: sent, who } = await this.outbox.handOver(1_000);
    const results = sent.map(
      ({ seq, row, scope }): Result => ({
        seq,
        status: "applied",
        scope,
        version,
        ...verdicts[row],
      }),
    );
    await meanwhile?.();
    return this.outbox.settle(sent, { results, clock: reading(this.time.now, 0, "0".repeat(16)) }, who, null);
  }

  /** The digest of a scope's rows, and what is kept of it. */
  async verify(scope: string): Promise<{ computed: string; kept: string }> {
    const { live, total } = (await this.scope(scope)) ?? { live: 0, total: 0 };
    return { computed: await this.replica.computed(scope), kept: text(live, total) };
  }

  /** A scope may not be read any more. */
  async revoke(scope: string): Promise<void> {
    await this.replica.revoke(scope, (await this.meta()).client);
  }

  close(): void {
    this.db.close();
  }
}

const STAMP = "2027-01-15T08:00:00.000000Z";

/** The server's state of a note. */
export function note(id: string, version: number, fields: Fields = {}, updated = STAMP): Change {
  const initial = {
    body: "",
    count: null,
    price: null,
    done: false,
    day: null,
    labels: {},
    extra: null,
    note_id: null,
  };
  const doc = { id, title: "t", ...initial, ...fields, created_at: STAMP, updated_at: updated };
  return { entity: "notes", row: id, version, doc };
}

export function task(id: string, version: number, title = "t", updated = STAMP): Change {
  const doc = { id, title, task_id: null, created_at: STAMP, updated_at: updated };
  return { entity: "tasks", row: id, version, doc };
}

export function gone(entity: string, row: string, version: number): Change {
  return { entity, row, version, doc: null };
}

/** A UUID that a test can tell from others. */
export function id(number: number): string {
  return `00000000-0000-4000-8000-${String(number).padStart(12, "0")}`;
}

export { Dexie, liveQuery } from "dexie";

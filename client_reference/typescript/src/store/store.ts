/** The open database, below the capture of the app's writes: what is written here is not sent. */

import { type DBCore, type DBCoreIndex, type DBCoreTable, type DBCoreTransaction, Dexie } from "dexie";

import { outdated, TidemarkError } from "../errors.ts";
import { Clock, isReading } from "../protocol/clock.ts";
import type { Declaration } from "../protocol/model.ts";
import { type Declared, declared, type Entities } from "./entities.ts";
import { BASE, LETTERS, META, OUTBOX, type ReplicaRecord, SCOPE, SHELF } from "./records.ts";

/** Time and chance, from outside. */
export interface Chance {
  /** The device's own time in Unix milliseconds. */
  now(): number;
  /** A number in [0, 1). */
  random(): number;
  /** A UUID that nobody else has drawn. */
  uuid(): string;
}

const OWN = [META, SCOPE, BASE, OUTBOX, LETTERS, SHELF];
const ANY_RANGE = 3;
const EQUAL = 1;
const RANGE = 2;

/** What a key range may begin or end with. */
type Bound = string | number | Bound[];

export class Store {
  readonly declaration: Declaration;
  readonly entities: Entities;
  readonly chance: Chance;
  /** Of this tab's clock: drawn at each opening, so that a copied profile never shares one (SPEC 2). */
  node = "";
  /** Whose rows this tab shows; null before it is known. */
  user: string | null = null;
  #db: Dexie;
  #core: DBCore | null = null;

  constructor(db: Dexie, declaration: Declaration, chance: Chance) {
    this.#db = db;
    this.declaration = declaration;
    this.entities = declared(declaration);
    this.chance = chance;
    this.renewNode();
  }

  renewNode(): string {
    this.node = Array.from({ length: 16 }, () => Math.floor(this.chance.random() * 16).toString(16)).join("");
    return this.node;
  }

  /** The layer below the capture; the middleware hands it over when the database opens. */
  get core(): DBCore {
    if (this.#core === null) throw new TidemarkError("closed", "the database is not open");
    return this.#core;
  }

  set core(core: DBCore) {
    this.#core = core;
  }

  get db(): Dexie {
    return this.#db;
  }

  /** Work that others wait for while the database opens: it goes through `vip`, which is let in before them. */
  async whileOpening(vip: Dexie, work: () => Promise<void>): Promise<void> {
    const db = this.#db;
    this.#db = vip;
    try {
      await work();
    } finally {
      this.#db = db;
    }
  }

  /** The declared tables whose rows live in scopes of one kind. */
  ofKind(kind: string): Declared[] {
    return [...this.entities.values()].filter(({ entity }) => entity.scope.kind === kind);
  }

  /** A transaction over the client's own stores and these tables; everything in it happens or nothing. */
  write<T>(tables: Iterable<string>, body: (inside: Inside) => Promise<T>): Promise<T> {
    return this.#transaction("rw", [...OWN, ...tables], body);
  }

  read<T>(tables: Iterable<string>, body: (inside: Inside) => Promise<T>): Promise<T> {
    return this.#transaction("r", [...OWN, ...tables], body);
  }

  #transaction<T>(mode: "r" | "rw", tables: string[], body: (inside: Inside) => Promise<T>): Promise<T> {
    // `transless`: work of ours is never part of a transaction that happens to be the app's.
    return Dexie.ignoreTransaction(() =>
      this.db.transaction(mode, tables, async (trans) =>
        body(new Inside(this.core, trans.idbtrans as unknown as DBCoreTransaction, this.declaration.schema)),
      ),
    );
  }
}

/** Reading and writing within one transaction. */
export class Inside {
  readonly #core: DBCore;
  readonly #trans: DBCoreTransaction;
  readonly #schema: number;

  /** `schema` is the number that this app declares. */
  constructor(core: DBCore, trans: DBCoreTransaction, schema: number) {
    this.#core = core;
    this.#trans = trans;
    this.#schema = schema;
  }

  async get<T>(table: string, key: unknown): Promise<T | undefined> {
    return (await this.#core.table(table).get({ trans: this.#trans, key })) as T | undefined;
  }

  /** The records of these keys, in their order. */
  async getMany<T>(table: string, keys: unknown[]): Promise<(T | undefined)[]> {
    if (keys.length === 0) return [];
    return (await this.#core.table(table).getMany({ trans: this.#trans, keys })) as (T | undefined)[];
  }

  /** All records in the order of an index (null: the primary key), or those with one key, or between two. */
  async all<T>(table: string, where: Where = {}): Promise<T[]> {
    return (await this.#query(table, where, true)) as T[];
  }

  /** Their primary keys. */
  async keys<T>(table: string, where: Where = {}): Promise<T[]> {
    return (await this.#query(table, where, false)) as T[];
  }

  async count(table: string, where: Where = {}): Promise<number> {
    const down = this.#core.table(table);
    return down.count({ trans: this.#trans, query: query(down, where) });
  }

  async put(table: string, values: readonly object[]): Promise<void> {
    if (values.length === 0) return;
    this.#check(await this.#core.table(table).mutate({ type: "put", trans: this.#trans, values }));
  }

  /** Append; the keys that were drawn. */
  async add(table: string, values: readonly object[]): Promise<number[]> {
    if (values.length === 0) return [];
    const done = await this.#core.table(table).mutate({ type: "add", trans: this.#trans, values });
    this.#check(done);
    return done.results ?? [];
  }

  async remove(table: string, keys: unknown[]): Promise<void> {
    if (keys.length === 0) return;
    this.#check(await this.#core.table(table).mutate({ type: "delete", trans: this.#trans, keys }));
  }

  async clear(table: string, where: Pick<Where, "from" | "below"> = {}): Promise<void> {
    const range = query(this.#core.table(table), where).range;
    this.#check(await this.#core.table(table).mutate({ type: "deleteRange", trans: this.#trans, range }));
  }

  // ── the replica ─────────────────────────────────────────────────────────────────────────────────────────────────

  async replica(): Promise<ReplicaRecord> {
    const found = await this.get<ReplicaRecord>(META, "replica");
    if (found === undefined) throw new TidemarkError("storage_lost", "the database was emptied");
    return found;
  }

  /**
   * What was asked for as one replica is nothing to another: by now the tables may be another user's, or a newer app's.
   */
  async mustBe(client: string): Promise<void> {
    const replica = await this.replica();
    if (replica.client !== client) throw new TidemarkError("user_changed", "that was of a former user");
    if (replica.schema > this.#schema) throw outdated();
  }

  /** Keep a reading that was received or has left the outbox, so that later ones are above it. */
  async observe(reading: string): Promise<void> {
    const replica = await this.replica();
    if (isReading(reading) && (replica.clock === null || reading > replica.clock))
      await this.put(META, [{ ...replica, clock: reading }]);
  }

  /** A clock at the highest reading that was received, sent, or issued to the outbox before `seq`. */
  async clock(node: string, seq: number): Promise<Clock> {
    const { clock } = await this.replica();
    const [last] = await this.all<{ at: string }>(OUTBOX, { below: seq, last: true });
    const own = new Clock(node, clock);
    if (last !== undefined) own.observe(last.at);
    return own;
  }

  async #query(table: string, where: Where, values: boolean): Promise<unknown[]> {
    const down = this.#core.table(table);
    const limit = where.last ? 1 : where.limit;
    const { result } = await down.query({
      trans: this.#trans,
      values,
      query: query(down, where),
      ...(limit === undefined ? {} : { limit }),
      ...(where.last ? { direction: "prev" } : {}),
    });
    return result;
  }

  #check({ numFailures, failures }: { numFailures: number; failures: { [at: number]: Error } }): void {
    if (numFailures > 0) throw Object.values(failures)[0] ?? new Error("a write failed");
  }
}

/** Which records: of one index's key, or from a key on, or below one; `last`: the last of them alone. */
export interface Where {
  index?: string;
  is?: Bound;
  from?: Bound;
  above?: Bound;
  below?: Bound;
  upTo?: Bound;
  limit?: number;
  last?: boolean;
}

function query(table: DBCoreTable, where: Where) {
  const { schema } = table;
  const found = where.index === undefined ? schema.primaryKey : schema.indexes.find(({ name }) => name === where.index);
  const index = found as DBCoreIndex;
  if (where.is !== undefined) return { index, range: { type: EQUAL, lower: where.is, upper: where.is } };
  const lower = where.from ?? where.above;
  const upper = where.upTo ?? where.below;
  if (lower === undefined && upper === undefined) {
    return { index, range: { type: ANY_RANGE, lower: Dexie.minKey, upper: Dexie.maxKey } };
  }
  return {
    index,
    range: {
      type: RANGE,
      lower: lower ?? Dexie.minKey,
      lowerOpen: where.above !== undefined,
      upper: upper ?? Dexie.maxKey,
      upperOpen: where.below !== undefined,
    },
  };
}

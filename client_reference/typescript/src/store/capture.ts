/**
 * The app's writes, captured where Dexie makes them: every one on a synchronised table is checked, stamped, and put
 * into the outbox in the same IndexedDB transaction (SPEC 2 to 4). An abort leaves neither.
 */

import Dexie, {
  type DBCore,
  type DBCoreDeleteRangeRequest,
  type DBCoreMutateRequest,
  type DBCoreMutateResponse,
  type DBCoreTable,
  type DBCoreTransaction,
  type Middleware,
} from "dexie";

import { asError, TidemarkError } from "../errors.ts";
import { MAX_BYTES, MAX_MUTATIONS } from "../generated/codes.ts";
import { Clock, instant } from "../protocol/clock.ts";
import type { Fields } from "../protocol/model.ts";
import { changed, type Op, rowName, utf8Length, wire } from "../protocol/outbox.ts";
import type { Declared } from "./entities.ts";
import {
  BASE,
  type BaseRecord,
  META,
  OUTBOX,
  type OutboxRecord,
  type ReplicaRecord,
  type Row,
  TOUCHED,
  targetOf,
} from "./records.ts";
import type { Store } from "./store.ts";
import { inZone, type Steps, wait } from "./zone.ts";

/** Bytes of one document (SPEC 4). */
const MAX_DOC = 256 << 10;
/** Between the hooks of the app, which see what it wrote, and the cache and observers, which see what is kept. */
const LEVEL = 1;
const ANY_RANGE = { type: 3, lower: Dexie.minKey, upper: Dexie.maxKey };

type NewRecord = Omit<OutboxRecord, "seq">;

/** What one transaction of the app's has written so far. */
class Writing {
  /** Its writes take effect together or not at all; null: each by itself. */
  group: string | null = null;
  /** The app allows that they are sent in several pushes. */
  divided = false;
  count = 0;
  bytes = 0;
  replica: ReplicaRecord | null = null;
  clock: Clock | null = null;
}

/** A value of a request, ready to be written. */
interface Prepared {
  readonly value: Row;
  readonly old: Row | undefined;
  readonly record: NewRecord | null;
}

export class Capture implements Middleware<DBCore> {
  readonly stack = "dbcore";
  readonly name = "tidemark";
  readonly level = LEVEL;
  readonly #store: Store;
  readonly #onWrite: () => void;
  readonly #writings = new WeakMap<DBCoreTransaction, Writing>();

  /** `onWrite` is told of every commit that put something into the outbox. */
  constructor(store: Store, onWrite: () => void) {
    this.#store = store;
    this.#onWrite = onWrite;
  }

  create = (core: DBCore): DBCore => {
    const { entities } = this.#store;
    this.#store.core = core;
    return {
      ...core,
      transaction: (stores, mode, options) => {
        if (mode !== "readwrite" || !stores.some((name) => entities.has(name) || name === OUTBOX)) {
          return core.transaction(stores, mode, options);
        }
        // What the app is told is written must survive a power cut: a mutation may have been sent by then.
        const trans = core.transaction([...new Set([...stores, ...TOUCHED])], mode, {
          ...options,
          durability: "strict",
        });
        this.#watch(trans);
        return trans;
      },
      table: (name) => {
        const down = core.table(name);
        const table = entities.get(name);
        if (table === undefined) return down;
        return {
          ...down,
          mutate: (request) => {
            const writing = this.#writings.get(request.trans);
            // An upgrade of the app's own stores is no edit.
            return writing === undefined
              ? down.mutate(request)
              : inZone(this.#mutate(core, down, table, writing, request));
          },
        };
      },
    };
  };

  /** Let the writes of the present transaction be sent in as many pushes as they need. */
  divide(): void {
    const trans = Dexie.currentTransaction as { idbtrans?: IDBTransaction } | null;
    const writing = trans?.idbtrans && this.#writings.get(trans.idbtrans as unknown as DBCoreTransaction);
    if (!writing)
      throw new TidemarkError("group_too_large", "split() belongs into a transaction of synchronised tables");
    writing.divided = true;
    writing.group = null;
  }

  #watch(trans: DBCoreTransaction): void {
    const writing = new Writing();
    this.#writings.set(trans, writing);
    (trans as unknown as IDBTransaction).addEventListener("complete", () => {
      if (writing.count > 0) this.#onWrite();
    });
  }

  *#mutate(
    core: DBCore,
    down: DBCoreTable,
    table: Declared,
    writing: Writing,
    request: DBCoreMutateRequest,
  ): Steps<DBCoreMutateResponse> {
    const { trans } = request;
    yield* this.#begin(core, trans, writing);
    if (request.type === "deleteRange") {
      return yield* this.#delete(core, down, table, writing, trans, yield* keysIn(down, request));
    }
    if (request.type === "delete") return yield* this.#delete(core, down, table, writing, trans, request.keys);
    const prepared = yield* this.#prepare(down, table, writing, request);
    const done = yield* wait(down.mutate({ ...request, values: prepared.map(({ value }) => value) }));
    const written = prepared.filter((_, at) => done.failures[at] === undefined);
    yield* this.#keep(core, table, writing, trans, written);
    return done;
  }

  /** Who writes here, and by which clock: looked up once in each transaction. */
  *#begin(core: DBCore, trans: DBCoreTransaction, writing: Writing): Steps<void> {
    if (writing.replica !== null) return;
    const outbox = core.table(OUTBOX);
    const all = { index: outbox.schema.primaryKey, range: ANY_RANGE };
    const [replica, last] = yield* wait(
      Dexie.Promise.all([
        core.table(META).get({ trans, key: "replica" }) as Promise<ReplicaRecord | undefined>,
        outbox.query({ trans, values: true, limit: 1, direction: "prev", query: all }),
      ]),
    );
    const { user } = this.#store;
    if (!replica?.user || user === null) {
      throw new TidemarkError("needs_auth", "nobody has signed in on this device yet: there is no outbox to write to");
    }
    if (replica.user !== user) {
      throw new TidemarkError("user_changed", "somebody else has signed in meanwhile: nothing was written");
    }
    const clock = new Clock(this.#store.node, replica.clock);
    const [latest] = last.result as OutboxRecord[];
    if (latest !== undefined) clock.observe(latest.at);
    writing.replica = replica;
    writing.clock = clock;
    if (Dexie.currentTransaction?.explicit && !writing.divided) writing.group = this.#store.chance.uuid();
  }

  *#prepare(
    down: DBCoreTable,
    table: Declared,
    writing: Writing,
    request: Extract<DBCoreMutateRequest, { type: "add" | "put" }>,
  ): Steps<Prepared[]> {
    const named = (request.values as Row[]).map((value) => this.#named(table, value));
    const keys = named.map(({ value, row }) => table.localKey(String(value[table.scopeColumn]), row));
    const olds: (Row | undefined)[] = yield* wait(down.getMany({ trans: request.trans, keys }));
    const before = new Map(named.map(({ row }, at) => [String(keys[at] ?? row), olds[at]]));
    return named.map(({ value, row }, at) => {
      const key = String(keys[at]);
      const prepared = this.#prepared(table, writing, row, value, before.get(key), request.type);
      before.set(key, prepared.value);
      return prepared;
    });
  }

  /** A value with its key, and with the scope where that goes without saying. */
  #named(table: Declared, given: Row): { value: Row; row: string } {
    const { columns, types } = table.entity.key;
    const [column] = columns;
    const value = { ...given };
    if (columns.length === 1 && types[0] === "uuid" && column && value[column] === undefined) {
      value[column] = this.#store.chance.uuid();
    }
    if (table.own && value[table.scopeColumn] === undefined) value[table.scopeColumn] = this.#store.user;
    const row = table.rowOf(value);
    const problem = row === null ? `the key (${columns.join(", ")}) is text` : table.rowProblem(row);
    if (row === null || problem !== null) throw new TidemarkError("invalid_row", `${table.name}: ${problem}`);
    return { value, row };
  }

  #prepared(
    table: Declared,
    writing: Writing,
    row: string,
    given: Row,
    old: Row | undefined,
    type: "add" | "put",
  ): Prepared {
    const where = `${table.name} ${row}`;
    const value =
      old !== undefined && given[table.scopeColumn] === undefined
        ? { ...given, [table.scopeColumn]: old[table.scopeColumn] ?? null }
        : given;
    const scope = this.#scopeOf(table, value, where);
    if (old !== undefined && old[table.scopeColumn] !== value[table.scopeColumn]) {
      throw new TidemarkError("scope_change", `${where} is in another scope: delete it there and add it here`);
    }
    let fields: Fields;
    try {
      fields = table.validator.put(table.fieldsOf(value));
    } catch (refused) {
      throw asError(refused, where);
    }
    // A second `add` of a key fails below, and nothing is recorded of it.
    const visible = type === "add" ? undefined : old;
    const said = visible === undefined ? fields : changed(table.documentOf(visible), fields, table.maps);
    if (visible !== undefined && Object.keys(said).length === 0) return { value: visible, old, record: null };
    const record = this.#record(table, writing, visible === undefined ? "put" : "patch", scope, row, said);
    const time = instant(record.at);
    const doc: Row = {
      ...this.#keyOf(table, value),
      ...fields,
      created_at: visible?.created_at ?? time,
      updated_at: time,
    };
    if (utf8Length(JSON.stringify(doc)) > MAX_DOC) {
      throw new TidemarkError("too_large", `${where}: a row holds at most ${MAX_DOC >> 10} KiB`);
    }
    return { value: doc, old: visible, record };
  }

  #keyOf(table: Declared, value: Row): Row {
    return Object.fromEntries(
      [...table.entity.key.columns, table.scopeColumn].map((name) => [name, value[name] ?? null]),
    );
  }

  #scopeOf(table: Declared, value: Row, where: string): string {
    const id = value[table.scopeColumn];
    if (id === undefined || id === null) {
      throw new TidemarkError(
        "scope_missing",
        `${where}: say where it is made, by ${table.scopeColumn}`,
        table.scopeColumn,
      );
    }
    if (table.own && id !== this.#store.user) {
      throw new TidemarkError(
        "scope_change",
        `${where}: rows of ${table.name} are their user's own`,
        table.scopeColumn,
      );
    }
    try {
      if (typeof id !== "string") throw new Error("a scope's id is text");
      return table.scopeOf(value);
    } catch (fault) {
      throw new TidemarkError("invalid_scope", `${where}: ${(fault as Error).message}`, table.scopeColumn);
    }
  }

  #record(table: Declared, writing: Writing, op: Op, scope: string, row: string, fields: Fields | null): NewRecord {
    const wall = this.#store.chance.now();
    const at = (writing.clock as Clock).issue(wall + (writing.replica?.offset ?? 0));
    const schema = this.#store.declaration.schema;
    const { group } = writing;
    const sent = { op, scope, entity: table.name, row, at, fields, schema, wall, group, handed: false };
    return { ...sent, target: targetOf(table.name, row) };
  }

  *#delete(
    core: DBCore,
    down: DBCoreTable,
    table: Declared,
    writing: Writing,
    trans: DBCoreTransaction,
    keys: unknown[],
  ): Steps<DBCoreMutateResponse> {
    const olds: (Row | undefined)[] = yield* wait(down.getMany({ trans, keys }));
    const gone = olds.flatMap((old): Prepared[] => {
      const row = old && table.rowOf(old);
      if (!old || !row) return [];
      return [{ value: old, old, record: this.#record(table, writing, "delete", table.scopeOf(old), row, null) }];
    });
    const done = yield* wait(down.mutate({ type: "delete", trans, keys }));
    yield* this.#keep(core, table, writing, trans, gone);
    return done;
  }

  /** Put what was written into the outbox, and the server's state of the rows aside where it is not kept yet. */
  *#keep(core: DBCore, table: Declared, writing: Writing, trans: DBCoreTransaction, written: Prepared[]): Steps<void> {
    const changes = written.flatMap(({ record, old }) => (record === null ? [] : [{ record, old }]));
    if (changes.length === 0) return;
    const records = changes.map(({ record }) => record);
    this.#measure(writing, records);
    const seen = changes.flatMap(({ record, old }) => (old === undefined ? [] : [{ record, old }]));
    if (seen.length > 0) {
      const names = seen.map(({ record }) => rowName(record.scope, table.name, record.row));
      const bases: (BaseRecord | undefined)[] = yield* wait(core.table(BASE).getMany({ trans, keys: names }));
      const values = bases.flatMap((base, at): BaseRecord[] => {
        const shown = seen[at];
        if (base === undefined || base.doc !== undefined || shown === undefined) return [];
        return [{ ...base, doc: table.documentOf(shown.old), hidden: shown.record.target }];
      });
      // Of several writes of one row in a request the first has met what the server knows.
      const firsts = [...new Map(values.toReversed().map((base) => [base.name, base])).values()];
      if (firsts.length > 0) yield* wait(core.table(BASE).mutate({ type: "put", trans, values: firsts }));
    }
    yield* wait(core.table(OUTBOX).mutate({ type: "add", trans, values: records }));
  }

  /** A group has to fit into one push (SPEC 4). */
  #measure(writing: Writing, records: NewRecord[]): void {
    writing.count += records.length;
    if (writing.group === null) return;
    for (const record of records) writing.bytes += utf8Length(JSON.stringify(wire({ ...record, seq: 2 ** 32 }))) + 1;
    if (writing.count > MAX_MUTATIONS || writing.bytes > MAX_BYTES - 256) {
      throw new TidemarkError(
        "group_too_large",
        `one transaction takes effect as a whole: at most ${MAX_MUTATIONS} writes and 1 MiB, or call split() first`,
      );
    }
  }
}

function* keysIn(down: DBCoreTable, { trans, range }: DBCoreDeleteRangeRequest): Steps<unknown[]> {
  const found = yield* wait(down.query({ trans, values: false, query: { index: down.schema.primaryKey, range } }));
  return found.result;
}

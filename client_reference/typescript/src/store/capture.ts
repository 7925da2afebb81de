/**
 * The app's writes, captured where Dexie makes them: every one on a synchronised table is checked, stamped, and put
 * into the outbox in the same IndexedDB transaction (SPEC 2 to 4). An abort leaves neither.
 *
 * A request costs two rounds to the database: one reads all that is to be known, one writes all that comes of it.
 */

import Dexie, {
  type DBCore,
  type DBCoreMutateRequest,
  type DBCoreMutateResponse,
  type DBCoreTable,
  type DBCoreTransaction,
  type Middleware,
} from "dexie";

import { TidemarkError } from "../errors.ts";
import { rowName } from "../protocol/outbox.ts";
import type { Declared } from "./entities.ts";
import { BASE, type BaseRecord, META, OUTBOX, type ReplicaRecord, type Row, TOUCHED } from "./records.ts";
import type { Store } from "./store.ts";
import { type Named, type NewRecord, type Prepared, Writing } from "./writing.ts";
import { inZone, type Steps, wait } from "./zone.ts";

/** Between the hooks of the app, which see what it wrote, and the cache and observers, which see what is kept. */
const LEVEL = 1;

/** A table within a transaction of the app's. */
interface Site {
  readonly core: DBCore;
  readonly down: DBCoreTable;
  readonly table: Declared;
  readonly trans: DBCoreTransaction;
  readonly writing: Writing;
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
        const all = [...new Set([...stores, ...TOUCHED])];
        // What the app is told is written must survive a power cut: a mutation may have been sent by then.
        const trans = core.transaction(all, mode, { ...options, durability: "strict" });
        this.#watch(trans);
        return trans;
      },
      table: (name) => {
        const down = core.table(name);
        const table = entities.get(name);
        if (table === undefined) return down;
        const after = <R extends { trans: DBCoreTransaction }, T>(read: (request: R) => Promise<T>) => {
          return (request: R): Promise<T> => {
            const writing = this.#writings.get(request.trans);
            return writing === undefined ? read(request) : writing.afterAll(() => read(request));
          };
        };
        return {
          ...down,
          get: after(down.get),
          getMany: after(down.getMany),
          query: after(down.query),
          openCursor: after(down.openCursor),
          count: after(down.count),
          mutate: (request) => {
            const { trans } = request;
            const writing = this.#writings.get(trans);
            // An upgrade of the app's own stores is no edit.
            if (writing === undefined) return down.mutate(request);
            return writing.inTurn(() => inZone(mutate({ core, down, table, trans, writing }, request)));
          },
        };
      },
    };
  };

  /** Let the writes of the present transaction be sent in as many pushes as they need. */
  divide(): void {
    const trans = Dexie.currentTransaction?.idbtrans as DBCoreTransaction | undefined;
    const writing = trans && this.#writings.get(trans);
    if (!writing) {
      throw new TidemarkError("group_too_large", "split() belongs into a transaction");
    }
    writing.divide();
  }

  #watch(trans: DBCoreTransaction): void {
    const writing = new Writing(this.#store);
    this.#writings.set(trans, writing);
    (trans as IDBTransaction).addEventListener("complete", () => {
      if (writing.count > 0) this.#onWrite();
    });
  }
}

function* mutate(site: Site, request: DBCoreMutateRequest): Steps<DBCoreMutateResponse> {
  const { down, trans } = site;
  switch (request.type) {
    case "add":
    case "put":
      return yield* save(site, request);
    case "delete":
      return yield* remove(site, request.keys);
    case "deleteRange": {
      const query = { index: down.schema.primaryKey, range: request.range };
      const { result } = yield* wait(down.query({ trans, values: false, query }));
      return yield* remove(site, result);
    }
    default:
      return request satisfies never;
  }
}

function* save(
  site: Site,
  request: Extract<DBCoreMutateRequest, { type: "add" | "put" }>,
): Steps<DBCoreMutateResponse> {
  const { down, table, writing } = site;
  const named = (request.values as Row[]).map((value) => writing.named(table, value));
  const keys = named.map(({ value, row }) => table.localKey(String(value[table.scopeColumn]), row));
  const fresh = named.every(({ drawn }) => drawn);
  const names = fresh || request.type === "add" ? [] : named.map((each) => nameOf(table, each));
  const known = yield* read(site, fresh ? [] : keys, names);
  const before = new Map(known.rows.map((old, at) => [String(keys[at]), old]));
  const prepared = named.map((each, at) => {
    const key = String(keys[at]);
    const found = prepare(site, request.type, each, before.get(key));
    before.set(key, found.value);
    return found;
  });
  const records = writing.take(prepared);
  const values = prepared.map(({ value }) => value);
  return yield* write(site, down.mutate.bind(down, { ...request, values }), prepared, records, known.bases);
}

/** The name of the row that a value is put into, as far as it says where that is. */
function nameOf(table: Declared, { value, row }: Named): string {
  try {
    return rowName(table.scopeOf(value), table.name, row);
  } catch {
    // No scope, or none that is one: what there is to say about it is said when the value is checked.
    return row;
  }
}

/** The second `add` of a key fails, as Dexie has it, and is nothing to send. */
function prepare({ table, writing }: Site, type: "add" | "put", named: Named, old: Row | undefined): Prepared {
  return type === "add" && old ? { value: old, old, record: null } : writing.put(table, named, old);
}

function* remove(site: Site, keys: unknown[]): Steps<DBCoreMutateResponse> {
  const { down, table, trans, writing } = site;
  const known = yield* read(site, keys, []);
  const olds = new Map(known.rows.map((old, at) => [String(keys[at]), old]));
  const prepared = [...olds.values()].flatMap((old) => (old === undefined ? [] : writing.delete(table, old)));
  const records = writing.take(prepared);
  return yield* write(site, () => down.mutate({ type: "delete", trans, keys }), prepared, records, known.bases);
}

/** What is known before a request: the rows of its keys, and the server's state of rows by name. */
interface Known {
  readonly rows: (Row | undefined)[];
  readonly bases: ReadonlyMap<string, BaseRecord | undefined>;
}

/** Look it up; and, once in each transaction, who writes here and by which clock. */
function* read({ core, down, trans, writing }: Site, keys: unknown[], names: string[]): Steps<Known> {
  const explicit = Dexie.currentTransaction?.explicit === true;
  const replica: Promise<ReplicaRecord | undefined> | null = writing.begun
    ? null
    : core.table(META).get({ trans, key: "replica" });
  const held: Promise<(BaseRecord | undefined)[]> = core.table(BASE).getMany({ trans, keys: names });
  const [rows, bases, who] = yield* wait(Dexie.Promise.all([down.getMany({ trans, keys }), held, replica]));
  if (replica !== null) writing.begin(who ?? undefined, explicit);
  return { rows, bases: new Map(names.map((name, at) => [name, bases[at]])) };
}

/**
 * Write the rows, put the mutations into the outbox, and set the server's state of the rows aside: all of it or, whatever
 * the app makes of a failure, nothing of its transaction.
 */
function* write(
  site: Site,
  rows: () => Promise<DBCoreMutateResponse>,
  prepared: readonly Prepared[],
  records: readonly NewRecord[],
  known: Known["bases"],
): Steps<DBCoreMutateResponse> {
  try {
    const expected = prepared.filter(({ record, old }) => record === null && old !== undefined).length;
    const done = rows();
    const others = Dexie.Promise.all(yield* besides(site, prepared, records, known));
    const [answer, answers] = yield* wait(Dexie.Promise.all([done, others]));
    if (answer.numFailures > expected || answers.some(({ numFailures }) => numFailures > 0)) {
      throw new TidemarkError("unexpected", "the database could not keep a write");
    }
    return answer;
  } catch (fault) {
    site.trans.abort();
    throw fault;
  }
}

/** What is written beside the rows. */
function* besides(
  { core, table, trans, writing }: Site,
  prepared: readonly Prepared[],
  records: readonly NewRecord[],
  known: Known["bases"],
): Steps<Promise<DBCoreMutateResponse>[]> {
  if (records.length === 0) return [];
  // Of several writes of one row in a request the first has met what the server knows.
  const met = new Map<string, Row>();
  for (const { old, record } of prepared) {
    const name = record && rowName(record.scope, table.name, record.row);
    if (old && name && !met.has(name)) met.set(name, old);
  }
  const bases = core.table(BASE);
  const names = [...met.keys()];
  const held = names.every((name) => known.has(name))
    ? names.map((name) => known.get(name))
    : ((yield* wait(bases.getMany({ trans, keys: names }))) as (BaseRecord | undefined)[]);
  const values = held.flatMap((base) => (base && base.doc === undefined ? [aside(table, base, met)] : []));
  return [
    core.table(OUTBOX).mutate({ type: "add", trans, values: records }),
    core.table(META).mutate({ type: "put", trans, values: [writing.replica] }),
    ...(values.length > 0 ? [bases.mutate({ type: "put", trans, values })] : []),
  ];
}

function aside(table: Declared, base: BaseRecord, met: ReadonlyMap<string, Row>): BaseRecord {
  const row = met.get(base.name) ?? {};
  return { ...base, doc: table.documentOf(row), hidden: `${table.name}/${table.rowOf(row)}` };
}

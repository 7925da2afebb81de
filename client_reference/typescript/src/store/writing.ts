/** What one transaction of the app's writes: each value checked and stamped (SPEC 2 to 4), before anything is kept. */

import { asError, outdated, TidemarkError } from "../errors.ts";
import { MAX_BYTES, MAX_MUTATIONS } from "../generated/codes.ts";
import { Clock, instant } from "../protocol/clock.ts";
import type { Fields } from "../protocol/model.ts";
import { changed, ENVELOPE_BYTES, type Op, utf8Length, wire } from "../protocol/outbox.ts";
import type { Declared } from "./entities.ts";
import { type OutboxRecord, type ReplicaRecord, type Row, targetOf } from "./records.ts";
import type { Store } from "./store.ts";

/** Bytes of one document (SPEC 4). */
const MAX_DOC = 256 << 10;

export type NewRecord = Omit<OutboxRecord, "seq">;

/** A value with its key, and with the scope where that goes without saying. */
export interface Named {
  readonly value: Row;
  readonly row: string;
  /** The key was made up here: nothing is there. */
  readonly drawn: boolean;
}

/** What comes of one value of a request: the row as it is to be kept, and the mutation that says so. */
export interface Prepared {
  readonly value: Row;
  /** The row that it changes or deletes. */
  readonly old: Row | undefined;
  /** Null: nothing changes, or (an `add` of a key that is there) it will fail. */
  readonly record: NewRecord | null;
}

export class Writing {
  readonly #store: Store;
  /** Its writes take effect together or not at all; null: each by itself. */
  #group: string | null = null;
  #divided = false;
  #begun: { replica: ReplicaRecord; clock: Clock } | null = null;
  #last: Promise<unknown> | null = null;
  #count = 0;
  #bytes = ENVELOPE_BYTES;

  constructor(store: Store) {
    this.#store = store;
  }

  get begun(): boolean {
    return this.#begun !== null;
  }

  /** Who writes here, with the last reading issued by now. */
  get replica(): ReplicaRecord | null {
    return this.#begun?.replica ?? null;
  }

  /** How many mutations it has put into the outbox. */
  get count(): number {
    return this.#count;
  }

  /** One request after the other, whether or not the app waits for each: so they stand in the outbox as they were made. */
  inTurn<T>(request: () => Promise<T>): Promise<T> {
    const done = this.afterAll(request);
    this.#last = done;
    return done;
  }

  /** What is read sees all that was written before. */
  afterAll<T>(request: () => Promise<T>): Promise<T> {
    return this.#last === null ? request() : this.#last.then(request, request);
  }

  /** The app allows that its writes are sent in several pushes. */
  divide(): void {
    this.#divided = true;
    this.#group = null;
  }

  /** Who writes here, and by which clock; `explicit`: it is a transaction that the app has asked for. */
  begin(replica: ReplicaRecord | undefined, explicit: boolean): void {
    const { user, node, chance } = this.#store;
    if (!replica?.user || user === null) {
      throw new TidemarkError("needs_auth", "nobody has signed in here yet");
    }
    if (replica.user !== user) {
      throw new TidemarkError("user_changed", "somebody else has signed in meanwhile: nothing was written");
    }
    if (replica.schema > this.#store.declaration.schema) throw outdated();
    const clock = new Clock(node, replica.clock);
    if (replica.issued !== null) clock.observe(replica.issued);
    this.#begun = { replica, clock };
    if (explicit && !this.#divided) this.#group = chance.uuid();
  }

  named(table: Declared, given: Row): Named {
    const { columns, types } = table.entity.key;
    const [column] = columns;
    const value = { ...given };
    const drawn = columns.length === 1 && types[0] === "uuid" && value[column as string] === undefined;
    if (drawn) value[column as string] = this.#store.chance.uuid();
    if (table.own && value[table.scopeColumn] === undefined) value[table.scopeColumn] = this.#store.user;
    const row = table.rowOf(value);
    const problem = row === null ? `the key (${columns.join(", ")}) is text` : table.rowProblem(row);
    if (row === null || problem !== null) throw new TidemarkError("invalid_row", `${table.name}: ${problem}`);
    return { value, row, drawn };
  }

  /** A value to be put, over `old` if that is there: of a visible row what changes is said, of another the whole. */
  put(table: Declared, { value: given, row }: Named, old: Row | undefined): Prepared {
    const where = `${table.name} ${row}`;
    const { scopeColumn } = table;
    const value =
      old && given[scopeColumn] === undefined ? { ...given, [scopeColumn]: old[scopeColumn] ?? null } : given;
    const scope = this.#scopeOf(table, value, where);
    if (old && old[scopeColumn] !== value[scopeColumn]) {
      throw new TidemarkError("scope_change", `${where} is in another scope: delete it there and add it here`);
    }
    const { fields, said } = this.#checked(table, value, old, where);
    if (old && Object.keys(said).length === 0) return { value: old, old, record: null };
    const record = this.#record(table, old ? "patch" : "put", scope, row, said);
    const time = instant(record.at);
    const kept: Row = { ...keyOf(table, value), ...fields, created_at: old?.created_at ?? time, updated_at: time };
    if (utf8Length(JSON.stringify(kept)) > MAX_DOC) {
      throw new TidemarkError("too_large", `${where}: a row holds at most ${MAX_DOC >> 10} KiB`);
    }
    return { value: kept, old, record };
  }

  delete(table: Declared, old: Row): Prepared[] {
    const row = table.rowOf(old);
    return row === null
      ? []
      : [{ value: old, old, record: this.#record(table, "delete", table.scopeOf(old), row, null) }];
  }

  /** The mutations of a request; a group has to fit into one push (SPEC 4). */
  take(prepared: readonly Prepared[]): NewRecord[] {
    const records = prepared.flatMap(({ record }) => (record === null ? [] : [record]));
    this.#count += records.length;
    if (this.#group === null) return records;
    for (const record of records) this.#bytes += utf8Length(JSON.stringify(wire({ ...record, seq: 2 ** 32 }))) + 1;
    if (this.#count <= MAX_MUTATIONS && this.#bytes <= MAX_BYTES) return records;
    throw new TidemarkError(
      "group_too_large",
      `a transaction holds at most ${MAX_MUTATIONS} writes and 1 MiB, or call split() first`,
    );
  }

  /** The row's fields as they are to be kept, and what of them is to be sent: of a row that is there what changes. */
  #checked(table: Declared, value: Row, old: Row | undefined, where: string): { fields: Fields; said: Fields } {
    const given = table.fieldsOf(value);
    try {
      if (old === undefined) {
        const fields = table.validator.put(given);
        return { fields, said: fields };
      }
      const news = table.news(old, given);
      const said = Object.keys(news).length === 0 ? {} : table.validator.patch(news);
      const held = table.fieldsOf(old) as Fields;
      return { fields: { ...held, ...said }, said: changed(held, said, table.maps) };
    } catch (refused) {
      throw asError(refused, where);
    }
  }

  #scopeOf(table: Declared, value: Row, where: string): string {
    const { scopeColumn } = table;
    const id = value[scopeColumn];
    if (id === undefined || id === null) {
      throw new TidemarkError("scope_missing", `${where}: say where it is made, by ${scopeColumn}`, scopeColumn);
    }
    if (table.own && id !== this.#store.user) {
      throw new TidemarkError("scope_change", `${where}: rows of ${table.name} are their user's own`, scopeColumn);
    }
    try {
      if (typeof id !== "string") throw new Error("a scope's id is text");
      return table.scopeOf(value);
    } catch (fault) {
      throw new TidemarkError("invalid_scope", `${where}: ${(fault as Error).message}`, scopeColumn);
    }
  }

  #record(table: Declared, op: Op, scope: string, row: string, fields: Fields | null): NewRecord {
    if (this.#begun === null) throw new Error("not begun");
    const { replica, clock } = this.#begun;
    const wall = this.#store.chance.now();
    const at = clock.issue(wall + (replica.offset ?? 0));
    const { schema } = this.#store.declaration;
    const sent = { op, scope, entity: table.name, row, at, fields, schema, wall, group: this.#group, handed: false };
    replica.issued = at;
    return { ...sent, queued: 1, target: targetOf(table.name, row) };
  }
}

function keyOf(table: Declared, value: Row): Row {
  return Object.fromEntries(
    [...table.entity.key.columns, table.scopeColumn].map((name) => [name, value[name] ?? null]),
  );
}

/** Dead letters (SPEC 4): what was rejected, and what the app may do about it. */

import type { Dexie } from "dexie";

import { TidemarkError } from "../errors.ts";
import type { Fields } from "../protocol/model.ts";
import { type Op, onTop } from "../protocol/outbox.ts";
import { scopeId } from "../protocol/rows.ts";
import type { Declared } from "./entities.ts";
import { LETTERS, type LetterRecord, type Row } from "./records.ts";
import type { Store } from "./store.ts";

/** A mutation that was not accepted, or leaned on one that was not. */
export interface Letter {
  readonly seq: number;
  readonly op: Op;
  readonly scope: string;
  readonly entity: string;
  readonly row: string;
  /** What it would have set: of a put the whole row, of a patch path → value; null of a delete. */
  readonly fields: Fields | null;
  /** A code of SPEC 4, `revoked` where the scope may not be read any more, `depends` where it builds on another one. */
  readonly code: string;
  /** For people. */
  readonly message: string;
  readonly field: string | null;
  /** The dead letter that this one builds on, whatever its own code; null if it stands by itself. */
  readonly cause: number | null;
  /** When it was parked (the device's own ms). */
  readonly parked: number;
}

/** The dead letters of this device's user: `db.rejected`. */
export class Letters {
  readonly #store: Store;
  readonly #divide: () => void;

  /** `divide` lets the writes of the present transaction be sent one by one. */
  constructor(store: Store, divide: () => void) {
    this.#store = store;
    this.#divide = divide;
  }

  /** All of them, in the order in which they were written. */
  list(): Promise<Letter[]> {
    return this.#db.table<LetterRecord>(LETTERS).toArray((records) => records.map(letterOf));
  }

  /** Write a letter again as of now, with all that belongs to it: what was of one group, and what builds on it. */
  retry(seq: number): Promise<void> {
    return this.#again(seq, null);
  }

  /** Write it again with other values: column → value, a map as a whole. */
  edit(seq: number, changes: Readonly<Record<string, unknown>>): Promise<void> {
    return this.#again(seq, changes);
  }

  /** Give a letter up for good, with all that belongs to it. */
  async discard(seq: number): Promise<void> {
    await this.#db.transaction("rw", LETTERS, async () => {
      const records = await this.#belonging(seq);
      await this.#db.table(LETTERS).bulkDelete(records.map((record) => record.seq));
    });
  }

  /** All of them as JSON, to be kept elsewhere. */
  async export(): Promise<string> {
    return JSON.stringify(await this.list(), null, 2);
  }

  get #db(): Dexie {
    return this.#store.db;
  }

  #again(seq: number, changes: Readonly<Record<string, unknown>> | null): Promise<void> {
    return this.#db.transaction("rw", [LETTERS, ...this.#store.entities.keys()], async () => {
      const records = await this.#belonging(seq);
      if (records.length === 0) throw new TidemarkError("row_gone", `there is no dead letter ${seq}`);
      if (!records.every(({ mutation }) => mutation.group && mutation.group === records[0]?.mutation.group))
        this.#divide();
      for (const record of records) await this.#write(record, record.seq === seq ? changes : null);
      await this.#db.table(LETTERS).bulkDelete(records.map((record) => record.seq));
    });
  }

  /** A letter, the others of its group, and all that builds on any of them, in order. */
  async #belonging(seq: number): Promise<LetterRecord[]> {
    const all = await this.#db.table<LetterRecord>(LETTERS).toArray();
    const group = all.find((record) => record.seq === seq)?.mutation.group;
    const taken = new Set<number>();
    for (const record of all) {
      const same = record.seq === seq || (group && record.mutation.group === group);
      if (same || (record.cause !== null && taken.has(record.cause))) taken.add(record.seq);
    }
    return all.filter((record) => taken.has(record.seq));
  }

  /** The same wish as a write of now: of a row that is visible what differs, of another the whole. */
  async #write({ mutation }: LetterRecord, changes: Readonly<Record<string, unknown>> | null): Promise<void> {
    const table = this.#store.entities.get(mutation.entity);
    if (table === undefined) throw new TidemarkError("unknown_entity", `this app declares no ${mutation.entity}`);
    const key = table.localKey(scopeId(mutation.scope), mutation.row);
    const rows = this.#db.table<Row, typeof key>(table.name);
    if (mutation.op === "delete") {
      await rows.delete(key);
      return;
    }
    const shown = await rows.get(key);
    await rows.put({ ...this.#after(table, mutation, shown), ...(changes as Row) });
  }

  #after(table: Declared, mutation: LetterRecord["mutation"], shown: Row | undefined): Row {
    const doc = shown === undefined ? null : table.documentOf(shown);
    const after = onTop(doc, [mutation], table.entity);
    if (after === null) throw new TidemarkError("row_gone", `${table.name} ${mutation.row} is not there any more`);
    return { ...after, [table.scopeColumn]: scopeId(mutation.scope) };
  }
}

function letterOf({ seq, mutation, code, message, field, cause, parked }: LetterRecord): Letter {
  const { op, scope, entity, row, fields } = mutation;
  return { seq, op, scope, entity, row, fields, code, message, field, cause, parked };
}

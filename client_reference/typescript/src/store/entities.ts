/** Declared tables, prepared for what is done to every row of them. */

import { Rejection } from "../protocol/errors.ts";
import { compileEntity, initial, type Validator } from "../protocol/fields.ts";
import { type Declaration, type Entity, type Fields, type Json, STAMPS, USER } from "../protocol/model.ts";
import { sameValue } from "../protocol/paths.ts";
import { formatScope, keyValues, rowProblem } from "../protocol/rows.ts";
import type { Row } from "./records.ts";

/** The `ref` fields of an entity, as `dependents` asks for them. */
export interface Ref {
  readonly name: string;
  readonly ref: string;
}

/** A primary key of a table. */
export type LocalKey = string | string[];

/** One declared table. */
export class Declared {
  readonly name: string;
  readonly entity: Entity;
  readonly validator: Validator;
  readonly maps: ReadonlySet<string>;
  readonly refs: readonly Ref[];
  readonly own: boolean;
  readonly #initial: Fields;

  constructor(name: string, entity: Entity) {
    const fields = Object.entries(entity.fields);
    this.name = name;
    this.entity = entity;
    this.validator = compileEntity(name, entity);
    this.maps = new Set(fields.filter(([, field]) => field.type === "map").map(([field]) => field));
    this.refs = fields.flatMap(([field, { ref }]) => (ref === undefined ? [] : [{ name: field, ref }]));
    this.own = entity.scope.kind === USER;
    this.#initial = Object.fromEntries(fields.map(([name, field]) => [name, initial(field) ?? null]));
  }

  get scopeColumn(): string {
    return this.entity.scope.column;
  }

  /** The key of a row as its columns spell it; null if they do not spell one. */
  rowOf(value: Readonly<Record<string, unknown>>): string | null {
    const parts = this.entity.key.columns.map((column) => value[column]);
    return parts.every((part) => typeof part === "string") ? parts.join(":") : null;
  }

  rowProblem(row: unknown): string | null {
    return rowProblem(this.entity, row);
  }

  /** The primary key in the table: a text, or a list where the key has several columns or holds for its scope alone. */
  localKey(id: string, row: string): LocalKey {
    const values = keyValues(this.entity, row);
    const parts = this.entity.key.per_scope ? [id, ...values] : values;
    const [only] = parts;
    return parts.length === 1 && only !== undefined ? only : parts;
  }

  /** The scope that a table's row came from, or is made in. */
  scopeOf(row: Row): string {
    return formatScope(this.entity.scope.kind, String(row[this.scopeColumn]));
  }

  /** A table's row as the server's document. */
  documentOf(row: Row): Fields {
    const { [this.scopeColumn]: _, ...doc } = row;
    return doc;
  }

  /**
   * The server's document as a table's row, in the shape that this app declares: what it does not know is left out,
   * what the document leaves out takes its default, else null (SPEC 10, "Changes between numbers"). `id` is the decoded
   * id of its scope.
   */
  rowFrom(id: string, doc: Fields): Row {
    const row: Row = {};
    for (const column of this.entity.key.columns) row[column] = doc[column] as Json;
    row[this.scopeColumn] = id;
    for (const field in this.#initial) {
      const value = doc[field];
      row[field] = value === undefined ? (this.#initial[field] as Json) : value;
    }
    for (const stamp of STAMPS) row[stamp] = doc[stamp] as Json;
    return row;
  }

  /**
   * What a whole row says that `doc` does not: absent fields take their default; Rejection `missing_field` where they
   * have none.
   */
  news(doc: Fields, given: Readonly<Record<string, unknown>>): Record<string, unknown> {
    const said: Record<string, unknown> = { ...given };
    for (const [name, field] of Object.entries(this.entity.fields)) {
      if (name in said) continue;
      said[name] = initial(field);
      if (said[name] === undefined) throw new Rejection("missing_field", `${name} is required`, name);
    }
    for (const name in said) if (name in doc && sameValue(said[name] as Json, doc[name])) delete said[name];
    return said;
  }

  /** What of a value is set by a mutation: all but key, scope column, the two times, and what is absent. */
  fieldsOf(value: Readonly<Record<string, unknown>>): Record<string, unknown> {
    const fields: Record<string, unknown> = {};
    for (const name in value) {
      const given = value[name];
      if (given !== undefined && !this.#isReadOnly(name)) fields[name] = given;
    }
    return fields;
  }

  #isReadOnly(name: string): boolean {
    return (
      name === this.scopeColumn || name === STAMPS[0] || name === STAMPS[1] || this.entity.key.columns.includes(name)
    );
  }
}

export type Entities = ReadonlyMap<string, Declared>;

export function declared(declaration: Declaration): Entities {
  return new Map(Object.entries(declaration.entities).map(([name, entity]) => [name, new Declared(name, entity)]));
}

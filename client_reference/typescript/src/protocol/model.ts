/** What a declaration says (SPEC 7 and 10): the shape of `GET /sync/schema`, which generated code holds as a constant. */

export type FieldType =
  | "text"
  | "integer"
  | "number"
  | "decimal"
  | "boolean"
  | "date"
  | "time"
  | "datetime"
  | "uuid"
  | "enum"
  | "json"
  | "map";

/** Types of key and scope columns. */
export type ColumnType = "text" | "uuid" | "integer";

export type OnDelete = "restrict" | "cascade" | "set_null" | "keep";
export type Grant = "read" | "write" | "manage";

/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A row's document, or the fields of a mutation: column or path → value. */
export type Fields = Record<string, Json>;

/** One declared field; what is not declared is absent. */
export interface Field {
  readonly type: FieldType;
  readonly nullable?: boolean;
  readonly default?: Json;
  /** Of a text in code points, else of the number. */
  readonly min?: number;
  readonly max?: number;
  readonly pattern?: string;
  readonly values?: readonly string[];
  readonly precision?: number;
  readonly scale?: number;
  /** The entity that the value is a key of. */
  readonly ref?: string;
  readonly on_delete?: OnDelete;
}

export interface Rule {
  readonly when: "put" | "patch" | "delete";
  readonly refuse_if: Readonly<Record<string, Json>>;
  readonly message: string;
}

/** One declared table. */
export interface Entity {
  /** The kind of scope its rows live in, and the column that holds the decoded scope id. */
  readonly scope: { readonly kind: string; readonly column: string; readonly type: ColumnType };
  /** The columns of the key, joined with `:`; `per_scope`: unique within a scope only. */
  readonly key: {
    readonly columns: readonly string[];
    readonly types: readonly ColumnType[];
    readonly per_scope: boolean;
  };
  readonly fields: Readonly<Record<string, Field>>;
  readonly index: readonly (readonly string[])[];
  readonly unique: readonly (readonly string[])[];
  readonly rules: readonly Rule[];
  readonly display: Readonly<Record<string, Json>>;
}

/** A whole schema file as clients need it. */
export interface Declaration {
  readonly schema: number;
  readonly oldest: number;
  readonly scopes: Readonly<Record<string, { readonly roles: Readonly<Record<string, Grant>> }>>;
  readonly entities: Readonly<Record<string, Entity>>;
}

/** The scope kind that is built in: `user:<sub>`, read and written by that user alone. */
export const USER = "user";

/** Datetimes that the server keeps in every document. */
export const STAMPS = ["created_at", "updated_at"] as const;

/** What `tidemark codegen typescript` writes about an app's tables, as the client takes it. */

import type { Declaration } from "./protocol/model.ts";

/** The types of one entity: its rows, what is given to insert and to update one, and its primary key. */
export interface TableTypes {
  readonly row: object;
  readonly insert: object;
  readonly update: object;
  readonly key: unknown;
}

/** A declaration with the Dexie stores that hold its rows; `T` maps each entity's name to its `TableTypes`. */
export interface Schema<T> {
  readonly declaration: Declaration;
  /** Dexie's definition of each entity's store: its primary key, then its indexes. */
  readonly stores: Record<string, string>;
  /** For the compiler alone: no value is ever there. */
  readonly tables?: T;
}

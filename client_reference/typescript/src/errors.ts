/** What the client throws. Codes are stable; messages are for people and never read by programs. */

import { Rejection } from "./protocol/errors.ts";

/** Codes of the client's own, besides those that a verdict bears (SPEC 4). */
export type ClientCode =
  /** Nobody has signed in on this device yet, so there is no outbox to write to. */
  | "needs_auth"
  /** Somebody else has signed in meanwhile, in this tab or another one: nothing was written. */
  | "user_changed"
  /** A new row of a shared scope does not say which. */
  | "scope_missing"
  /** A write would move a row to another scope. */
  | "scope_change"
  /** One transaction holds more than one push may: see `Tidemark.split`. */
  | "group_too_large"
  /** What a dead letter builds on is not there. */
  | "row_gone"
  /** The database was emptied or deleted from outside. */
  | "storage_lost"
  /** The database is not open. */
  | "closed"
  /** What the database failed at for no reason that is known. */
  | "unexpected";

export class TidemarkError extends Error {
  override readonly name = "TidemarkError";
  /** Of `ClientCode`, or a code of the protocol. */
  readonly code: string;
  /** The field or path at fault, if there is one. */
  readonly field: string | null;

  constructor(code: ClientCode | string, message: string, field: string | null = null) {
    super(message);
    this.code = code;
    this.field = field;
  }
}

/** A refusal of the protocol's checks, as the app sees it, naming the row. */
export function asError(refused: unknown, where: string): unknown {
  return refused instanceof Rejection
    ? new TidemarkError(refused.code, `${where}: ${refused.message}`, refused.field)
    : refused;
}

/** Another tab has opened the database with a newer version of the app. */
export function outdated(): TidemarkError {
  return new TidemarkError("schema_mismatch", "a newer version of this app has the database: reload");
}

/**
 * What a request came to when it came to nothing, by what is done about it.
 *
 * Only a verdict of the service itself is final. Whatever else answers in its place, a proxy's page or nothing at all,
 * is temporary and costs no mutation.
 *
 *     Error
 *     ├── Temporary    try again later, at the earliest after `retryAfter`
 *     ├── NeedsAuth    there is no token that the service takes
 *     ├── Upgrade      the service does not serve this schema number: the app must be upgraded
 *     ├── TooMuch      a whole push was refused: send less; `final` if the service itself said so
 *     └── Refused      repeating the request changes nothing
 */

import { TidemarkError } from "../errors.ts";
import type { Problem } from "./status.ts";

export class Temporary extends Error {
  override readonly name = "Temporary";
  /** Milliseconds that the service asks to wait; null: it does not say. */
  readonly retryAfter: number | null;

  constructor(message: string, retryAfter: number | null = null) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

export class NeedsAuth extends Error {
  override readonly name = "NeedsAuth";
}

export class Upgrade extends Error {
  override readonly name = "Upgrade";
}

export class TooMuch extends Error {
  override readonly name = "TooMuch";
  readonly code: string;
  readonly final: boolean;

  constructor(code: string, message: string, final: boolean) {
    super(message);
    this.code = code;
    this.final = final;
  }
}

export class Refused extends Error {
  override readonly name = "Refused";
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** A failure as the app is told of it. */
export function problemOf(fault: unknown): Problem {
  const message = fault instanceof Error ? fault.message : String(fault);
  if (fault instanceof Temporary) return { code: "unavailable", message };
  if (fault instanceof NeedsAuth) return { code: "needs_auth", message };
  if (fault instanceof Upgrade) return { code: "schema_mismatch", message };
  if (fault instanceof Refused) return { code: fault.code, message };
  if (fault instanceof TidemarkError) return { code: fault.code, message };
  const name = fault instanceof Error ? fault.name : "";
  // Storage is found to be full at the commit: Dexie then says that the transaction was aborted, and why within.
  const { inner } = fault as { readonly inner?: unknown };
  const names = [name, inner instanceof Error || inner instanceof DOMException ? inner.name : ""];
  return { code: names.includes("QuotaExceededError") ? "quota" : "unexpected", message: `${name}: ${message}` };
}

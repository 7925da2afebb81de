/**
 * What a request came to when it came to nothing, by what is done about it.
 *
 * Only a verdict of the service itself is final. Whatever else answers in its place, a proxy's page or nothing at all,
 * is temporary and costs no mutation.
 *
 *     TidemarkError
 *     ├── Temporary    try again later, at the earliest after `retryAfter`
 *     ├── NeedsAuth    there is no token that the service takes
 *     ├── Upgrade      the service does not serve this schema number: the app must be upgraded
 *     ├── TooMuch      a whole push was refused: send less; `final` if the service itself said so
 *     └── Refused      repeating the request changes nothing
 */

import { TidemarkError } from "../errors.ts";
import type { Problem } from "./status.ts";

export class Temporary extends TidemarkError {
  /** Milliseconds that the service asks to wait; null: it does not say. */
  readonly retryAfter: number | null;

  constructor(message: string, retryAfter: number | null = null) {
    super("unavailable", message);
    this.retryAfter = retryAfter;
  }
}

export class NeedsAuth extends TidemarkError {
  constructor(message: string) {
    super("needs_auth", message);
  }
}

export class Upgrade extends TidemarkError {
  constructor(message: string) {
    super("schema_mismatch", message);
  }
}

export class TooMuch extends TidemarkError {
  readonly final: boolean;

  constructor(code: string, message: string, final: boolean) {
    super(code, message);
    this.final = final;
  }
}

export class Refused extends TidemarkError {}

/** A failure as the app is told of it. */
export function problemOf(fault: unknown): Problem {
  if (fault instanceof TidemarkError) return { code: fault.code, message: fault.message };
  const { name = "", message = String(fault), inner } = fault as { name?: string; message?: string; inner?: Error };
  // Dexie says that something came to nothing, and why within.
  const names = [name, inner?.name];
  const full = names.includes("QuotaExceededError");
  // A transaction or an opening that the browser ended, a lock that another tab took: it is tried again.
  const code = full ? "quota" : names.includes("AbortError") ? "unavailable" : "unexpected";
  return { code, message: `${name}: ${message}` };
}

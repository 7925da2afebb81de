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

/** The tokens of the app's user (SPEC 8): asked of the app, kept until shortly before they run out. */

import { NeedsAuth, Temporary } from "./faults.ts";

/** Gives a token of whoever is signed in, null if nobody is; may fail, as when the network is away. */
export type FetchToken = () => Promise<string | null>;

/** A JWT, and what it says of itself; only the service can tell whether it is genuine. */
export interface Token {
  readonly text: string;
  readonly user: string;
  /** Unix seconds. */
  readonly expires: number;
}

/** A token is not used any more so many ms before its end. */
const MARGIN = 10_000;

export class Tokens {
  readonly #fetch: FetchToken;
  readonly #now: () => number;
  #held: Token | null = null;
  #asking: Promise<Token> | null = null;

  constructor(fetch: FetchToken, now: () => number) {
    this.#fetch = fetch;
    this.#now = now;
  }

  /** A token that is good for a while; NeedsAuth or Temporary where there is none. */
  current(): Promise<Token> {
    const held = this.#held;
    return held !== null && held.expires * 1_000 - this.#now() > MARGIN ? Promise.resolve(held) : this.renew();
  }

  /** Ask the app for a fresh one, once however many ask. */
  renew(): Promise<Token> {
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  /** The service did not take this token: the app is asked for another one the next time. */
  spoil(token: Token): void {
    if (this.#held?.text === token.text) this.#held = null;
  }

  /** Whoever was signed in may not be any more. */
  forget(): void {
    this.#held = null;
  }

  async #ask(): Promise<Token> {
    let text: string | null;
    try {
      text = await this.#fetch();
    } catch (fault) {
      throw new Temporary(`no token: ${fault instanceof Error ? fault.message : String(fault)}`);
    }
    if (!text) throw new NeedsAuth("nobody is signed in");
    this.#held = claimsOf(text);
    return this.#held;
  }
}

/** Read a token; NeedsAuth if it is none. */
export function claimsOf(text: string): Token {
  try {
    const body = (text.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
    const { sub, exp }: { sub: unknown; exp: unknown } = JSON.parse(new TextDecoder().decode(bytes));
    if (typeof sub === "string" && typeof exp === "number") return { text, user: sub, expires: exp };
  } catch {
    // Said below, as of one that lacks a claim.
  }
  throw new NeedsAuth("that is no token: a JWT with `sub`, the user, and `exp` is needed");
}

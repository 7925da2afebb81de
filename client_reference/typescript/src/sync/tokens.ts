/** The tokens of the app's user (SPEC 8): asked of the app, kept until shortly before they run out. */

import { NeedsAuth, Temporary } from "./faults.ts";
import type { Surroundings } from "./surroundings.ts";

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
/** How long the app may take to give one (ms). */
const PATIENCE = 30_000;

export class Tokens {
  readonly #fetch: FetchToken;
  readonly #around: Pick<Surroundings, "now" | "after">;
  /** The server's time less this device's (ms), as far as it is known: by it a token runs out. */
  offset = 0;
  #held: Token | null = null;
  #asking: Promise<Token> | null = null;

  constructor(fetch: FetchToken, around: Pick<Surroundings, "now" | "after">) {
    this.#fetch = fetch;
    this.#around = around;
  }

  /** A token that is good for a while; NeedsAuth or Temporary where there is none. */
  current(): Promise<Token> {
    const held = this.#held;
    const now = this.#around.now() + this.offset;
    return held !== null && held.expires * 1_000 - now > MARGIN ? Promise.resolve(held) : this.renew();
  }

  /** Ask the app for a fresh one, once however many ask. */
  renew(): Promise<Token> {
    if (this.#asking !== null) return this.#asking;
    const asking: Promise<Token> = this.#ask().then((token) => {
      // Whoever has signed in since asks for a token of their own.
      if (this.#asking === asking) this.#held = token;
      return token;
    });
    this.#asking = asking;
    const over = () => {
      if (this.#asking === asking) this.#asking = null;
    };
    asking.then(over, over);
    return asking;
  }

  /** The service did not take this token: the app is asked for another one the next time. */
  spoil(token: Token): void {
    if (this.#held?.text === token.text) this.#held = null;
  }

  /** Whoever was signed in may not be any more. */
  forget(): void {
    this.#held = null;
    this.#asking = null;
  }

  async #ask(): Promise<Token> {
    let text: string | null;
    try {
      text = await this.#inTime();
    } catch (fault) {
      throw new Temporary(`no token: ${fault instanceof Error ? fault.message : String(fault)}`);
    }
    if (!text) throw new NeedsAuth("nobody is signed in");
    return claimsOf(text);
  }

  #inTime(): Promise<string | null> {
    return new Promise((resolve, reject) => {
      const forget = this.#around.after(PATIENCE, () => reject(new Error("fetchToken hangs")));
      Promise.resolve(this.#fetch()).then(resolve, reject).finally(forget);
    });
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
  throw new NeedsAuth("a token is a JWT with `sub`, the user, and `exp`");
}

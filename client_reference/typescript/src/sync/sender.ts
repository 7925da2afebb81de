/** When the outbox is sent: soon after a write, one push at a time, later and later while that fails. */

import { Backoff } from "./backoff.ts";
import { Temporary } from "./faults.ts";
import { Lane, type Peer } from "./peer.ts";
import type { Pusher } from "./pusher.ts";

/** How long a write waits for company before it is sent (ms). */
const DEBOUNCE = 5;
/** The longest that a push is put off: by failures, and because the service asks for it (ms). */
const LONGEST = 60_000;
const LONGEST_ASKED = 3_600_000;

export class Sender {
  readonly #peer: Peer;
  readonly #pusher: Pusher;
  readonly #told: (fault: unknown) => void;
  readonly #lane = new Lane();
  readonly #backoff: Backoff;
  #running = false;
  #cancel: (() => void) | null = null;
  #due = 0;
  /** Not before this time: after a failure, and because the service said so. */
  #backedOff = 0;
  #asked = 0;

  /** `told` what each push came to, null where all went out; it is tried again unless the sender is stopped for it. */
  constructor(peer: Peer, pusher: Pusher, told: (fault: unknown) => void) {
    this.#peer = peer;
    this.#pusher = pusher;
    this.#told = told;
    this.#backoff = new Backoff(() => peer.around.random());
  }

  /** Send what there is: there is a way again, as far as is known. */
  start(): void {
    this.#running = true;
    this.#backoff.reset();
    this.#backedOff = 0;
    this.#cancel?.();
    this.#cancel = null;
    this.wrote();
  }

  stop(): void {
    this.#running = false;
    this.#cancel?.();
    this.#cancel = null;
  }

  /** There is something in the outbox. */
  wrote(): void {
    if (!this.#running) return;
    const now = this.#peer.around.now();
    const due = Math.max(now + DEBOUNCE, this.#notBefore());
    if (this.#cancel !== null) {
      if (this.#due <= due) return;
      this.#cancel();
    }
    this.#due = due;
    this.#cancel = this.#peer.around.after(Math.min(due - now, LONGEST), () => {
      this.#cancel = null;
      void this.#send();
    });
  }

  /** Send until the outbox is empty; rejects with what stands in the way. */
  now(): Promise<void> {
    return this.#lane.run(() => this.#pusher.push());
  }

  /** A time further ahead than it can have been set is of a clock that was wrong. */
  #notBefore(): number {
    const now = this.#peer.around.now();
    if (this.#backedOff > now + LONGEST) this.#backedOff = 0;
    if (this.#asked > now + LONGEST_ASKED) this.#asked = 0;
    return Math.max(this.#backedOff, this.#asked);
  }

  /** The push before this one may have failed meanwhile. */
  async #push(): Promise<void> {
    if (this.#peer.around.now() < this.#notBefore()) return this.wrote();
    await this.#pusher.push();
    this.#backoff.reset();
    this.#told(null);
  }

  async #send(): Promise<void> {
    try {
      await this.#lane.run(() => this.#push());
    } catch (fault) {
      if (!this.#running) return;
      const now = this.#peer.around.now();
      this.#backedOff = now + this.#backoff.next();
      if (fault instanceof Temporary && fault.retryAfter !== null)
        this.#asked = now + Math.min(fault.retryAfter, LONGEST_ASKED);
      this.#told(fault);
      this.wrote();
    }
  }
}

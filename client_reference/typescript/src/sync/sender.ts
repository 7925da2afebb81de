/** When the outbox is sent: soon after a write, one push at a time, later and later while that fails. */

import { Backoff } from "./backoff.ts";
import { Temporary } from "./faults.ts";
import { Lane, type Peer } from "./peer.ts";
import type { Pusher } from "./pusher.ts";

/** How long a write waits for company before it is sent (ms). */
const DEBOUNCE = 5;
/** How long another tab's push is waited for (ms). */
const PATIENCE = 60_000;

export class Sender {
  readonly #peer: Peer;
  readonly #pusher: Pusher;
  readonly #failed: (fault: unknown) => void;
  readonly #lane = new Lane();
  readonly #backoff: Backoff;
  #running = false;
  #cancel: (() => void) | null = null;
  #due = 0;
  /** Not before this time: after a failure, and because the service said so. */
  #backedOff = 0;
  #asked = 0;

  /** `failed` is told why a push came to nothing; it is tried again unless the sender is stopped for it. */
  constructor(peer: Peer, pusher: Pusher, failed: (fault: unknown) => void) {
    this.#peer = peer;
    this.#pusher = pusher;
    this.#failed = failed;
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
    const due = Math.max(now + DEBOUNCE, this.#backedOff, this.#asked);
    if (this.#cancel !== null) {
      if (this.#due <= due) return;
      this.#cancel();
    }
    this.#due = due;
    this.#cancel = this.#peer.around.after(due - now, () => {
      this.#cancel = null;
      void this.#send();
    });
  }

  /** Send until the outbox is empty; rejects with what stands in the way. */
  now(): Promise<void> {
    return this.#lane.run(() => this.#alone(() => this.#pusher.push()));
  }

  /** A client has one push in flight, whichever of its tabs or workers it comes from; a frozen one is not waited for. */
  #alone(push: () => Promise<void>): Promise<void> {
    const { locks, after } = this.#peer.around;
    if (locks === null) return push();
    const name = `tidemark:${this.#peer.store.db.name}:push`;
    const late = new AbortController();
    const forget = after(PATIENCE, () => late.abort());
    const held = () => {
      forget();
      return push();
    };
    return locks.request(name, { signal: late.signal }, held).catch((fault: unknown) => {
      if (!late.signal.aborted) throw fault;
      return locks.request(name, { steal: true }, push);
    });
  }

  /** The push before this one may have failed meanwhile. */
  async #push(): Promise<void> {
    if (this.#peer.around.now() < Math.max(this.#backedOff, this.#asked)) return this.wrote();
    await this.#alone(() => this.#pusher.push());
    this.#backoff.reset();
  }

  async #send(): Promise<void> {
    try {
      // Before anything is handed over: is it still this user who is signed in?
      const { user } = await this.#peer.tokens.current();
      if (user !== this.#peer.store.user)
        throw new Temporary("somebody else has signed in: what is theirs comes first");
      await this.#lane.run(() => this.#push());
    } catch (fault) {
      if (!this.#running) return;
      const now = this.#peer.around.now();
      this.#backedOff = now + this.#backoff.next();
      if (fault instanceof Temporary && fault.retryAfter !== null) this.#asked = now + fault.retryAfter;
      this.#failed(fault);
      this.wrote();
    }
  }
}

/** Long polls, where no websocket can be had (SPEC 5, "Waiting"). */

import { Backoff } from "./backoff.ts";
import type { Lane, Peer } from "./peer.ts";
import type { Puller } from "./puller.ts";

/** An answer without news that comes so soon (ms) has not been waited for. */
const SOON = 1_000;

export class Poller {
  readonly #peer: Peer;
  readonly #puller: Puller;
  readonly #lane: Lane;
  #ending: AbortController | null = null;
  /** Poll now, if it was put off. */
  wake: () => void = () => undefined;

  /** `lane`: answers are taken in one after the other with whatever else comes down. */
  constructor(peer: Peer, puller: Puller, lane: Lane) {
    this.#peer = peer;
    this.#puller = puller;
    this.#lane = lane;
  }

  get active(): boolean {
    return this.#ending !== null;
  }

  /** Poll until `end`; `told` what each poll came to, null where it came to an answer. */
  begin(told: (fault: unknown) => void): void {
    if (this.#ending !== null) return;
    const ending = new AbortController();
    this.#ending = ending;
    void this.#poll(ending.signal, told);
  }

  end(): void {
    this.#ending?.abort();
    this.#ending = null;
    this.wake();
  }

  async #poll(signal: AbortSignal, told: (fault: unknown) => void): Promise<void> {
    const backoff = new Backoff(() => this.#peer.around.random());
    while (!signal.aborted) {
      try {
        const asked = this.#peer.around.now();
        const take = await this.#puller.ask(signal);
        const found = await this.#lane.run(async () => !signal.aborted && (await take()));
        if (signal.aborted) return;
        told(null);
        // Something on the way does not let a request wait.
        if (!found && this.#peer.around.now() - asked < SOON) await this.#pause(backoff.next());
        else backoff.reset();
      } catch (fault) {
        if (signal.aborted) return;
        told(fault);
        await this.#pause(backoff.next());
      }
    }
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const forget = this.#peer.around.after(ms, resolve);
      this.wake = () => {
        forget();
        resolve();
      };
    });
  }
}

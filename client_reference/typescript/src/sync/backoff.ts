/** Delays after failures in a row: half of one and up to as much again by chance, doubled each time. */

const FIRST = 500;
const LONGEST = 60_000;

export class Backoff {
  readonly #random: () => number;
  #failures = 0;

  constructor(random: () => number) {
    this.#random = random;
  }

  /** Milliseconds to wait after one more failure. */
  next(): number {
    const delay = Math.min(LONGEST, FIRST * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    return delay * (0.5 + this.#random() / 2);
  }

  /** It works again. */
  reset(): void {
    this.#failures = 0;
  }
}

/** Time and chance as a test wants them: nothing happens by itself. */

import type { Chance } from "../../src/store/store.ts";

/** When tests begin, in Unix ms. */
export const START = 1_800_000_000_000;

interface Timer {
  readonly at: number;
  readonly callback: () => void;
}

/** A clock that is moved by hand, and its timers. */
export class Time {
  now = START;
  readonly #timers = new Set<Timer>();

  after = (ms: number, callback: () => void): (() => void) => {
    const timer = { at: this.now + ms, callback };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  };

  /** Let so much time go by; what is due in it happens in its order. */
  pass(ms: number): void {
    const end = this.now + ms;
    for (;;) {
      const due = [...this.#timers].filter(({ at }) => at <= end).sort((one, two) => one.at - two.at)[0];
      if (due === undefined) break;
      this.#timers.delete(due);
      this.now = Math.max(this.now, due.at);
      due.callback();
    }
    this.now = end;
  }
}

/** Chance that is the same in every run (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** UUIDs out of chance. */
export function uuids(random: () => number): () => string {
  const hex = (digits: number) => Array.from({ length: digits }, () => Math.floor(random() * 16).toString(16)).join("");
  return () => `${hex(8)}-${hex(4)}-4${hex(3)}-8${hex(3)}-${hex(12)}`;
}

let seed = 0;

/** What a store asks of the world; each call gives another one. */
export function chance(time: Time): Chance {
  const random = seeded(++seed);
  return { now: () => time.now, random, uuid: uuids(random) };
}

/** Wait until something holds, while `meanwhile` happens again and again; after five seconds it never will. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  meanwhile: () => void = () => undefined,
): Promise<void> {
  const patience = performance.now() + 5_000;
  while (!(await holds())) {
    if (performance.now() > patience) throw new Error(`never: ${holds}`);
    meanwhile();
    await turn();
  }
}

/** Let everything go on that is ready to. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** As many turns as a store needs to finish whatever it has begun. */
export async function quiet(turns = 60): Promise<void> {
  for (let at = 0; at < turns; at++) await turn();
}

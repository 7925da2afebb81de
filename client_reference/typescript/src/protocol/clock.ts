/**
 * The hybrid logical clock (SPEC 2; Kulkarni et al., "Logical Physical Clocks", 2014).
 *
 * A reading is text, `<12 hex: Unix ms>-<4 hex: counter>-<16 hex: node>`, so that text order is clock order.
 * Wall time comes in as an argument, in milliseconds: nothing here looks at a clock.
 */

const READING = /^[0-9a-f]{12}-[0-9a-f]{4}-[0-9a-f]{16}$/;
const MAX_COUNTER = 0xffff;
/** Milliseconds of 9999-12-31T23:59:59.999Z: a later reading has no RFC 3339 time. */
const LAST_INSTANT = 253402300799999;

/** Whether `value` is a well-formed reading that names an instant RFC 3339 can write. */
export function isReading(value: unknown): value is string {
  return typeof value === "string" && READING.test(value) && millisOf(value) <= LAST_INSTANT;
}

export function reading(millis: number, counter: number, node: string): string {
  return `${hex(millis, 12)}-${hex(counter, 4)}-${node}`;
}

/** Unix milliseconds of a reading. */
export function millisOf(at: string): number {
  return Number.parseInt(at.slice(0, 12), 16);
}

/** The reading's time as the protocol writes it: RFC 3339, UTC, six digits of fraction. */
export function instant(at: string): string {
  return instantOfMillis(millisOf(at));
}

/** A time as the protocol writes it; RangeError outside the years 0001 to 9999. */
export function instantOfMillis(millis: number): string {
  const text = new Date(millis).toISOString();
  if (text.length !== 24 || text < "0001") throw new RangeError(text);
  return `${text.slice(0, -1)}000Z`;
}

/** One replica's clock: never issues a reading twice, nor one at or below any it has issued or observed. */
export class Clock {
  readonly #node: string;
  #millis = 0;
  #counter = -1;

  /** `node` is 16 lower case hex digits. */
  constructor(node: string, latest: string | null = null) {
    this.#node = node;
    if (latest !== null) this.observe(latest);
  }

  /** Advance to a reading received, so that the next one issued is above it. */
  observe(at: string): void {
    const millis = millisOf(at);
    const counter = Number.parseInt(at.slice(13, 17), 16);
    if (millis > this.#millis || (millis === this.#millis && counter > this.#counter)) {
      this.#millis = millis;
      this.#counter = counter;
    }
  }

  /** A new reading at wall time `now` (ms): counts up within a millisecond, moves on when the counter is full. */
  issue(now: number): string {
    if (now > this.#millis) {
      this.#millis = now;
      this.#counter = 0;
    } else if (this.#counter < MAX_COUNTER) {
      this.#counter += 1;
    } else {
      this.#millis += 1;
      this.#counter = 0;
    }
    return reading(this.#millis, this.#counter, this.#node);
  }
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}

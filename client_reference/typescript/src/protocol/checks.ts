/** The check of one value of each declared type (SPEC 10): refused or canonical, never mended. */

import { instantOfMillis } from "./clock.ts";
import type { Field, FieldType, Json } from "./model.ts";
import { UUID } from "./rows.ts";

/** Containers within each other in one `json` or `map` value, the outermost counted. */
export const MAX_NESTING = 30;
const MAX_MAP_KEY = 128;

/** A value breaks its field; the text says what it must be. */
export class Invalid extends Error {}

/** A value nests more than `MAX_NESTING` containers. */
export class TooDeep extends Error {}

/** Gives the canonical value; throws Invalid or TooDeep. */
export type Check = (value: unknown) => Json;

const DATE = /^\d{4}-\d\d-\d\d$/;
const TIME = /^((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d{1,6}))?$/;
const DATETIME =
  /^(\d{4}-\d\d-\d\d)T((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d{1,6}))?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))$/i;
/** With the `u` flag a surrogate is one that stands alone. */
const UNKEEPABLE = /[\0\p{Cs}]/u;

/** The check of one field's whole value, null included. */
export function compileField(field: Field): Check {
  const check = CHECKS[field.type](field);
  return field.nullable ? (value) => (value === null ? null : check(value)) : check;
}

/** Whether `value` is what `{…}` makes, in any realm: no array, no Date, no instance of a class. */
export function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false;
  const above: unknown = Object.getPrototypeOf(value);
  return above === null || Object.getPrototypeOf(above) === null;
}

export function checkMapKey(key: string): void {
  const length = codePoints(key);
  if (length < 1 || length > MAX_MAP_KEY)
    throw new Invalid(`has a key that is not 1 to ${MAX_MAP_KEY} characters long`);
  checkCharacters(key);
}

/**
 * `value` if it is JSON that can be kept, with at most `room` containers within each other.
 *
 * Level by level, so that a faulty value below the limit is still the first thing said.
 */
export function checkJson(value: unknown, room: number): Json {
  // A container is looked into once, so that a circle ends too.
  const seen = new Set<object>();
  let level = new Set(isContainer(value) ? [value] : []);
  let depth = 0;
  for (; level.size > 0; depth++) {
    const below = new Set<object>();
    for (const container of level) {
      if (depth > room) seen.add(container);
      const list = Array.isArray(container);
      if (!list) for (const key of Object.keys(container)) checkCharacters(key);
      // The iterator, unlike Object.values, gives the holes of an array too.
      for (const entry of list ? container : Object.values(container)) {
        if (isContainer(entry) && !seen.has(entry)) below.add(entry);
      }
    }
    level = below;
  }
  if (depth > room) throw isCircle(value) ? new Invalid("must be JSON: it holds itself") : new TooDeep();
  return value as Json;
}

/** Whether an element of JSON holds others; Invalid if it is none that can be kept. */
function isContainer(value: unknown): value is object {
  if (typeof value === "string") checkCharacters(value);
  else if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new Invalid("must not hold a number beyond the range of a double");
  } else if (value !== null && typeof value !== "boolean") {
    if (Array.isArray(value) || isPlain(value)) return true;
    throw new Invalid("must be JSON");
  }
  return false;
}

function isCircle(value: unknown): boolean {
  try {
    JSON.stringify(value);
    return false;
  } catch (fault) {
    return fault instanceof TypeError; // a RangeError: deeper than the engine's stack
  }
}

function checkCharacters(text: string): void {
  if (UNKEEPABLE.test(text)) throw new Invalid("must not contain NUL or lone surrogates");
}

function codePoints(text: string): number {
  return text.length - (text.match(/[\ud800-\udbff](?=[\udc00-\udfff])/g)?.length ?? 0);
}

/** A check of text by a pattern; what it gives is the canonical form. */
function matching(pattern: RegExp, must: string, canonical: (match: RegExpExecArray) => string): Check {
  return (value) => {
    const match = typeof value === "string" ? pattern.exec(value) : null;
    if (match === null) throw new Invalid(`must be ${must}`);
    return canonical(match);
  };
}

function range(value: number, { min = -Infinity, max = Infinity }: Field): number {
  if (value < min || value > max) throw new Invalid(`must be from ${min} to ${max}`);
  return value + 0; // `-0` travels as `0`
}

function text({ min = 0, max = Infinity, pattern }: Field): Check {
  const whole = pattern === undefined ? null : new RegExp(`^(?:${pattern})$`, "u");
  return (value) => {
    if (typeof value !== "string") throw new Invalid("must be text");
    checkCharacters(value);
    const length = codePoints(value);
    if (length < min || length > max) {
      throw new Invalid(`must be ${max < Infinity ? `from ${min} to ${max}` : `at least ${min}`} characters long`);
    }
    if (whole?.test(value) === false) throw new Invalid(`must match ${pattern}`);
    return value;
  };
}

function decimal({ precision = 0, scale = 0 }: Field): Check {
  const whole = precision - scale;
  const integer = whole === 0 ? "0" : `(?:0|[1-9]\\d{0,${whole - 1}})`;
  const pattern = new RegExp(`^(-?)(${integer})${scale ? `(?:\\.(\\d{1,${scale}}))?` : ""}$`);
  const must = `a decimal written as text, at most ${whole} digits before and ${scale} after the point`;
  return matching(pattern, must, ([, sign, digits, fraction = ""]) => {
    const value = scale ? `${digits}.${fraction.padEnd(scale, "0")}` : `${digits}`;
    return /[1-9]/.test(value) ? `${sign}${value}` : value;
  });
}

/** Unix ms of a day's time in UTC; Invalid if there is no such day, or none in the years 0001 to 9999. */
function moment(day: string, time: string, minutes = 0): number {
  const millis = Date.parse(`${day}T${time}Z`);
  const shifted = millis - minutes * 60_000;
  try {
    // An engine may take 30 February for 2 March.
    if (!instantOfMillis(millis).startsWith(day)) throw new RangeError();
    instantOfMillis(shifted);
  } catch {
    throw new Invalid("must be a moment that exists, in years 0001 to 9999");
  }
  return shifted;
}

function date(): Check {
  return matching(DATE, "a date written YYYY-MM-DD", ([day]) => {
    moment(day, "00:00:00");
    return day;
  });
}

function time(): Check {
  const must = "a time HH:MM:SS without a zone, up to six digits of fraction";
  return matching(TIME, must, ([, seconds = "", fraction = ""]) =>
    /[1-9]/.test(fraction) ? `${seconds}.${fraction.padEnd(6, "0")}` : seconds,
  );
}

function datetime(): Check {
  const must = "an RFC 3339 datetime with a zone, up to six digits of fraction";
  return matching(DATETIME, must, ([, day = "", seconds = "", fraction = "", sign, hours = 0, minutes = 0]) => {
    const ahead = Number(hours) * 60 + Number(minutes);
    const seconds0 = instantOfMillis(moment(day, seconds, sign === "-" ? -ahead : ahead));
    // A Date knows no microseconds.
    return `${seconds0.slice(0, 20)}${fraction.padEnd(6, "0")}Z`;
  });
}

const CHECKS: Record<FieldType, (field: Field) => Check> = {
  text,
  decimal,
  date,
  time,
  datetime,
  integer: (field) => (value) => {
    if (typeof value !== "number" || !Number.isInteger(value)) throw new Invalid("must be an integer");
    if (!Number.isSafeInteger(value)) throw new Invalid("must lie within 2^53 - 1 of 0");
    return range(value, field);
  },
  number: (field) => (value) => {
    if (typeof value !== "number") throw new Invalid("must be a number");
    if (!Number.isFinite(value)) throw new Invalid("must be finite");
    return range(value, field);
  },
  boolean: () => (value) => {
    if (typeof value !== "boolean") throw new Invalid("must be true or false");
    return value;
  },
  uuid: () => matching(UUID, "a UUID in lower case with hyphens", ([uuid]) => uuid),
  enum:
    ({ values = [] }) =>
    (value) => {
      if (typeof value !== "string" || !values.includes(value))
        throw new Invalid(`must be one of ${values.join(", ")}`);
      return value;
    },
  json: () => (value) => {
    if (value === null) throw new Invalid("must not be null");
    return checkJson(value, MAX_NESTING);
  },
  map: () => (value) => {
    if (!isPlain(value)) throw new Invalid("must be an object");
    for (const [key, entry] of Object.entries(value)) {
      checkMapKey(key);
      if (entry === null) throw new Invalid("must not hold null: leave the key out");
    }
    return checkJson(value, MAX_NESTING);
  },
};

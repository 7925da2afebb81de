/** Validation of mutations (SPEC 4, SPEC 10). */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { compileField, isPlain } from "../../src/protocol/checks.ts";
import { Rejection } from "../../src/protocol/errors.ts";
import { compileEntity } from "../../src/protocol/fields.ts";
import type { Entity, Field } from "../../src/protocol/model.ts";
import { vectors } from "./vectors.ts";

interface Vector {
  claim: string;
  declared: Record<string, Field>;
  op: "put" | "patch";
  fields: unknown;
  expect: { value: Record<string, unknown> } | { code: string; field: string | null };
}

function entity(fields: Record<string, Field>): Entity {
  return {
    scope: { kind: "user", column: "user_id", type: "text" },
    key: { columns: ["id"], types: ["uuid"], per_scope: false },
    fields,
    index: [],
    unique: [],
    rules: [],
    display: {},
  };
}

function outcome(declared: Record<string, Field>, op: "put" | "patch", fields: unknown): unknown {
  if (!isPlain(fields)) throw new TypeError("this client makes objects");
  const validator = compileEntity("things", entity(declared));
  try {
    return { value: op === "put" ? validator.put(fields) : validator.patch(fields) };
  } catch (refused) {
    if (!(refused instanceof Rejection)) throw refused;
    return { code: refused.code, field: refused.field };
  }
}

const all = vectors<Vector>("fields.json");
/** What this client never makes: it writes each field as a whole, and none is no patch. */
const others = all.filter(
  ({ op, fields }) =>
    !isPlain(fields) ||
    (op === "patch" && (Object.keys(fields).length === 0 || Object.keys(fields).some((path) => path.includes("/")))),
);

test("what is left to the server is a small part", () => {
  expect(others.length).toBeGreaterThan(0);
  expect(others.length).toBeLessThan(all.length / 4);
});

test.each(all.filter((vector) => !others.includes(vector)))(
  "$op: $claim: $fields",
  ({ declared, op, fields, expect: wanted }) => {
    const found = outcome(declared, op, fields);
    expect(found).toEqual(wanted);
    // The order of a row's fields counts.
    if ("value" in wanted) expect(Object.keys((found as typeof wanted).value)).toEqual(Object.keys(wanted.value));
  },
);

const circle: unknown[] = [];
circle.push({ circle });

const refused = { code: "invalid_field", field: "x" };

describe("what JSON cannot carry is refused, not thrown", () => {
  class Point {
    readonly x = 1;
  }
  const strange: [name: string, value: unknown][] = [
    ["undefined", undefined],
    ["a Date", new Date(0)],
    ["a bigint", 1n],
    ["NaN", Number.NaN],
    ["Infinity", Infinity],
    ["a function", () => 1],
    ["a symbol", Symbol("x")],
    ["a Map", new Map([["a", 1]])],
    ["an instance of a class", new Point()],
    ["a boxed text", Object("x")],
    ["bytes", new Uint8Array(1)],
    ["a circle", circle],
  ];

  test.each(strange)("%s in a json or a map", (_, value) => {
    const nested = (Object.values({ value, list: [value], object: { deep: { value } } }) as unknown[]).slice(1);
    for (const within of nested) expect(outcome({ x: { type: "json" } }, "put", { x: within })).toEqual(refused);
    expect(outcome({ x: { type: "map" } }, "put", { x: { key: value } })).toEqual(refused);
  });

  test.each(["json", "map", "text", "integer", "number", "boolean", "date", "datetime", "uuid", "enum"] as const)(
    "as a whole value of type %s",
    (type) => {
      for (const [, value] of strange.filter(([, value]) => value !== undefined)) {
        expect(outcome({ x: { type, values: ["a"] } }, "put", { x: value })).toEqual(refused);
      }
    },
  );

  test("a hole in a list", () => {
    // biome-ignore lint/suspicious/noSparseArray: the hole is what is tested
    expect(outcome({ x: { type: "json" } }, "put", { x: [1, , 2] })).toEqual(refused);
  });
});

test("objects of another realm, without a prototype, or behind a proxy are plain objects", () => {
  const bare = Object.assign(Object.create(null), { a: 1 });
  expect(outcome({ x: { type: "json" } }, "put", { x: bare })).toEqual({ value: { x: { a: 1 } } });
  expect(outcome({ x: { type: "map" } }, "put", { x: new Proxy({ a: 1 }, {}) })).toEqual({ value: { x: { a: 1 } } });
});

test("undefined counts as left out of a put, whatever its name, and is no value in a patch", () => {
  const declared: Record<string, Field> = { x: { type: "text", default: "d" }, y: { type: "text", nullable: true } };
  expect(outcome(declared, "put", { x: undefined, y: undefined, id: undefined, z: undefined })).toEqual({
    value: { x: "d", y: null },
  });
  expect(outcome({ x: { type: "text" } }, "put", { x: undefined })).toEqual({ code: "missing_field", field: "x" });
  expect(outcome(declared, "patch", { y: undefined })).toEqual({ code: "invalid_field", field: "y" });
});

test("null given to a nullable field with a default is null", () => {
  expect(outcome({ x: { type: "text", nullable: true, default: "d" } }, "put", { x: null })).toEqual({
    value: { x: null },
  });
});

test("names that every object inherits are no fields", () => {
  for (const name of ["constructor", "toString", "__proto__", "hasOwnProperty"]) {
    const fields: unknown = JSON.parse(`{"${name}": 1}`);
    for (const op of ["put", "patch"] as const) {
      expect(outcome({}, op, fields)).toEqual({ code: "unknown_field", field: name });
    }
  }
});

test("minus zero is kept as it travels, as zero", () => {
  for (const type of ["integer", "number"] as const) {
    expect(Object.is(compileField({ type })(-0), 0)).toBe(true);
  }
});

test("1.0 is the integer 1: a JavaScript engine reads and writes them alike", () => {
  expect(outcome({ x: { type: "integer" } }, "put", JSON.parse('{"x": 1.0}'))).toEqual({ value: { x: 1 } });
});

test("nesting beyond any stack is too deep, and a faulty value below the limit is said first", () => {
  let deep: unknown = "bottom";
  for (let depth = 0; depth < 100_000; depth++) deep = [deep];
  expect(outcome({ x: { type: "json" } }, "put", { x: deep })).toEqual({ code: "too_deep", field: "x" });
  let faulty: unknown = "\0";
  for (let depth = 0; depth < 40; depth++) faulty = [faulty];
  expect(outcome({ x: { type: "json" } }, "put", { x: faulty })).toEqual(refused);
});

test("of required fields that are too deep it is said that they are, not that they are missing", () => {
  let deep: unknown = 1;
  for (let at = 0; at < 40; at++) deep = [deep];
  const declared: Record<string, Field> = { x: { type: "json" }, y: { type: "json" } };
  expect(outcome(declared, "put", { x: deep, y: deep })).toEqual({ code: "too_deep", field: "x" });
});

test("what is shared within a value is looked into once for each level", () => {
  let shared: unknown = 1;
  for (let depth = 0; depth < 29; depth++) shared = [shared, shared];
  expect(outcome({ x: { type: "json" } }, "put", { x: [shared] })).toEqual({ value: { x: [shared] } });
});

test("what is canonical stays as it is", () => {
  const digits = (count: number) => fc.stringMatching(new RegExp(`^[0-9]{1,${count}}$`));
  const pad = (high: number) => fc.integer({ min: 0, max: high }).map((n) => String(n).padStart(2, "0"));
  const clock = fc.tuple(pad(23), pad(59), pad(59)).map((parts) => parts.join(":"));
  const fraction = fc.oneof(
    fc.constant(""),
    digits(6).map((some) => `.${some}`),
  );
  const times = fc.tuple(clock, fraction).map((parts) => parts.join(""));
  const days = fc
    .date({ min: new Date("0001-01-02T00:00:00Z"), max: new Date("9999-12-30T00:00:00Z"), noInvalidDate: true })
    .map((date) => date.toISOString().slice(0, 10));
  const zones = fc.oneof(
    fc.constantFrom("Z", "z"),
    fc.tuple(fc.constantFrom("+", "-"), pad(23), pad(59)).map(([sign, h, m]) => `${sign}${h}:${m}`),
  );
  const decimals = fc.tuple(
    fc.constantFrom("", "-"),
    fc.nat({ max: 999 }),
    fc.oneof(
      fc.constant(""),
      digits(2).map((d) => `.${d}`),
    ),
  );
  const samples = fc.oneof(
    times.map((value) => [{ type: "time" } as Field, value] as const),
    fc
      .tuple(days, times, zones)
      .map(([day, time, zone]) => [{ type: "datetime" } as Field, `${day}T${time}${zone}`] as const),
    decimals.map((parts) => [{ type: "decimal", precision: 5, scale: 2 } as Field, parts.join("")] as const),
    fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => [{ type: "number" } as Field, value] as const),
    fc.jsonValue({ maxDepth: 5 }).map((value) => [{ type: "json", nullable: true } as Field, value] as const),
  );
  fc.assert(
    fc.property(samples, ([field, value]) => {
      const check = compileField(field);
      const once = check(value);
      expect(check(once)).toEqual(once);
    }),
  );
});

test("a datetime keeps its microseconds on the way to UTC", () => {
  expect(compileField({ type: "datetime" })("2026-11-20t23:30:00.123456-01:30")).toBe("2026-11-21T01:00:00.123456Z");
});

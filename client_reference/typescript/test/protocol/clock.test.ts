/** The hybrid logical clock (SPEC 2). */

import fc from "fast-check";
import { expect, test } from "vitest";
import { Clock, instant, instantOfMillis, isReading, millisOf, reading } from "../../src/protocol/clock.ts";
import { vectors } from "./vectors.ts";

type Step = { issue: number } | { observe: string };
type Vector = { claim: string } & (
  | { kind: "format"; millis: number; counter: number; node: string; expect: { at: string; instant: string } }
  | { kind: "valid"; value: unknown; expect: boolean }
  | { kind: "order"; pair: [string, string]; expect: number }
  | { kind: "issue"; node: string; latest: string | null; steps: Step[]; expect: string[] }
);

test.each(vectors<Vector>("clock.json"))("$kind: $claim", (vector) => {
  expect(outcome(vector)).toEqual(vector.expect);
});

function outcome(vector: Vector): unknown {
  switch (vector.kind) {
    case "format": {
      const at = reading(vector.millis, vector.counter, vector.node);
      return { at, instant: instant(at) };
    }
    case "valid":
      return isReading(vector.value);
    case "order": {
      const [one, two] = vector.pair;
      return Number(one > two) - Number(one < two);
    }
    case "issue": {
      const own = new Clock(vector.node, vector.latest);
      return vector.steps.flatMap((step) => {
        if ("issue" in step) return [own.issue(step.issue)];
        own.observe(step.observe);
        return [];
      });
    }
    default:
      return vector satisfies never;
  }
}

const NODE = "5f1c9a7e3d2b4a68";
const walls = fc.integer({ min: 0, max: 3 });
const readings = fc
  .tuple(walls, fc.constantFrom(0, 1, 0xfffe, 0xffff), fc.constantFrom("0".repeat(16), "f".repeat(16)))
  .map(([millis, counter, node]) => reading(millis, counter, node));

test("readings rise above all issued and observed, whatever the wall clock does (I3)", () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(walls, readings)), (steps) => {
      const own = new Clock(NODE);
      let highest = ""; // time and counter
      for (const step of steps) {
        const at = typeof step === "string" ? step : own.issue(step);
        if (typeof step === "string") own.observe(step);
        else expect(isReading(at) && at.slice(0, 17) > highest).toBe(true);
        if (at.slice(0, 17) > highest) highest = at.slice(0, 17);
      }
    }),
  );
});

test("a reading's time is told as it was put in", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 253402300799999 }), (millis) => {
      expect(millisOf(reading(millis, 7, NODE))).toBe(millis);
      expect(Date.parse(instantOfMillis(millis))).toBe(millis);
    }),
  );
});

test("times are written for the years 0001 to 9999 and for no others", () => {
  expect(instantOfMillis(-62135596800000)).toBe("0001-01-01T00:00:00.000000Z");
  expect(instantOfMillis(253402300799999)).toBe("9999-12-31T23:59:59.999000Z");
  for (const beyond of [-62135596800001, 253402300800000, Number.NaN, 8.64e15]) {
    expect(() => instantOfMillis(beyond)).toThrow(RangeError);
  }
});

test("a clock continues from the reading it is given", () => {
  expect(new Clock(NODE, reading(5, 3, "0".repeat(16))).issue(2)).toBe(reading(5, 4, NODE));
});

/** The four rules for applying runs (SPEC 5). */

import fc from "fast-check";
import { expect, test } from "vitest";
import type { Change, Run } from "../../src/generated/messages.ts";
import { type Copy, judge, NOTHING, type Step } from "../../src/protocol/replica.ts";
import { vectors } from "./vectors.ts";

interface Given {
  run: Run;
  asked: boolean;
}
type Vector = { claim: string; expect: unknown } & (
  | ({ kind: "step"; copy: Copy } & Given)
  | { kind: "history"; runs: Given[] }
);

test.each(vectors<Vector>("replica.json"))("$kind: $claim", (vector) => {
  expect(outcome(vector)).toEqual(vector.expect);
});

function outcome(vector: Vector): unknown {
  switch (vector.kind) {
    case "step":
      return described(judge(vector.copy, vector.run, vector.asked));
    case "history": {
      let held = { copy: NOTHING, rows: new Map<string, number>() };
      for (const { run, asked } of vector.runs) held = after(held, judge(held.copy, run, asked));
      return { copy: held.copy, rows: Object.fromEntries(held.rows) };
    }
    default:
      return vector satisfies never;
  }
}

function described(step: Step): unknown {
  if (step.kind !== "apply") return { step: step.kind };
  const { kind, changes, ...others } = step;
  return { step: kind, versions: changes.map((change) => change.version), ...others };
}

interface Held {
  copy: Copy;
  rows: Map<string, number>;
}

function after(held: Held, step: Step): Held {
  if (step.kind !== "apply") return held;
  const rows = new Map(step.replace ? [] : held.rows);
  for (const { row, version, doc } of step.changes) {
    if (doc === null) rows.delete(row);
    else rows.set(row, version);
  }
  return { copy: step.copy, rows };
}

const logs = fc.array(fc.tuple(fc.constantFrom("a", "b", "c"), fc.boolean()), { minLength: 1, maxLength: 12 });

/** The run from `from` to `to` of a scope whose version n is `log[n - 1]`: which row, and whether it is live. */
function runOf(log: [row: string, live: boolean][], from: number, to: number): Run {
  const latest = new Map<string, Change>();
  for (const [place, [row, live]] of log.slice(0, to).entries()) {
    latest.delete(row);
    latest.set(row, { entity: "notes", row, version: place + 1, doc: live ? {} : null });
  }
  const changes = [...latest.values()].filter(({ version, doc }) => version > from && (from > 0 || doc !== null));
  return { scope: "a:1", from, to, head: to, watermark: `at ${to}`, changes };
}

function rowsAt(log: [string, boolean][], to: number): Map<string, number> {
  return new Map(runOf(log, 0, to).changes.map(({ row, version }) => [row, version]));
}

test("whatever runs come, late, doubled or out of order, a replica never goes back and holds what it says (I34)", () => {
  fc.assert(
    fc.property(logs, fc.array(fc.tuple(fc.nat(), fc.nat(), fc.boolean()), { maxLength: 20 }), (log, asked) => {
      let held: Held = { copy: NOTHING, rows: new Map() };
      for (const [one, two, own] of asked) {
        const [from = 0, to = 0] = [one % (log.length + 1), two % (log.length + 1)].sort((a, b) => a - b);
        const before = held.copy;
        held = after(held, judge(before, runOf(log, from, to), own));
        expect(held.copy.to).toBeGreaterThanOrEqual(before.to);
        expect(held.copy.highest).toBeGreaterThanOrEqual(before.highest);
        expect(held.copy.watermark).toBe(held.copy.to > 0 || held.copy.watermark ? `at ${held.copy.to}` : null);
        expect(new Map([...held.rows].sort())).toEqual(new Map([...rowsAt(log, held.copy.to)].sort()));
      }
    }),
  );
});

test("a digest is given only where the replica is at the highest head it has seen (I32)", () => {
  const numbers = fc.integer({ min: 0, max: 6 });
  fc.assert(
    fc.property(
      numbers,
      numbers,
      numbers,
      numbers,
      numbers,
      fc.boolean(),
      fc.boolean(),
      (at, seen, from, to, head, reset, asked) => {
        const copy = { to: at, highest: Math.max(at, seen), watermark: "w" };
        const run = { ...runOf([], from, to), head: Math.max(to, head), reset, digest: "0-000000000000" };
        const step = judge(copy, run, asked);
        if (step.kind !== "apply") return;
        const there = step.copy.to === step.copy.highest && run.to === run.head && run.to === step.copy.to;
        expect(step.digest).toBe(there ? run.digest : null);
        // Only a reset goes back.
        if (step.copy.to < copy.to || step.copy.highest < copy.highest) expect(step.reset && step.replace).toBe(true);
      },
    ),
  );
});

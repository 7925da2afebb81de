/** The arithmetic of the outbox (SPEC 2, 3 and 4). */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Result } from "../../src/generated/messages.ts";
import { Clock, reading } from "../../src/protocol/clock.ts";
import type { Entity, Fields } from "../../src/protocol/model.ts";
import {
  batch,
  changed,
  dependents,
  ENVELOPE_BYTES,
  halved,
  onTop,
  type Pending,
  restamp,
  rowName,
  settle,
  units,
  utf8Length,
  wire,
} from "../../src/protocol/outbox.ts";
import { vectors } from "./vectors.ts";

type Vector = { claim: string; expect: unknown } & (
  | { kind: "wire"; mutation: Partial<Pending> }
  | { kind: "batch"; pending: Partial<Pending>[]; limits?: { max_mutations?: number; max_bytes?: number } }
  | { kind: "halved"; refused: Partial<Pending>[] }
  | { kind: "settle"; sent: Partial<Pending>[]; results: Result[] }
  | {
      kind: "dependents";
      parked: Partial<Pending>[];
      pending: Partial<Pending>[];
      refs: Record<string, [name: string, ref: string][]>;
      standing: [scope: string, entity: string, row: string][];
    }
  | { kind: "restamp"; node: string; latest: string | null; offset: number; now: number; pending: Partial<Pending>[] }
  | { kind: "on_top"; key: { columns: string[]; types: "text"[] }; doc: Fields | null; mutations: Partial<Pending>[] }
  | { kind: "changed"; doc: Fields; wanted: Fields; maps: string[] }
);

/** Members of a mutation that a vector leaves out do not matter to it. */
function pending(given: Partial<Pending>): Pending {
  return {
    seq: 1,
    op: "put",
    scope: "workspace:7",
    entity: "tasks",
    row: "a",
    at: "000000000000-0000-0000000000000000",
    fields: {},
    schema: 1,
    wall: 0,
    handed: false,
    ...given,
  };
}

function entity(columns: string[], types: "text"[]): Entity {
  return {
    scope: { kind: "workspace", column: "workspace_id", type: "text" },
    key: { columns, types, per_scope: false },
    fields: {},
    index: [],
    unique: [],
    rules: [],
    display: {},
  };
}

const seqs = (mutations: Pending[]) => mutations.map((mutation) => mutation.seq);

test.each(vectors<Vector>("outbox.json"))("$kind: $claim", (vector) => {
  const before = structuredClone(vector);
  expect(outcome(vector)).toEqual(vector.expect);
  // Nothing here changes what it is given.
  expect(vector).toEqual(before);
});

function outcome(vector: Vector): unknown {
  switch (vector.kind) {
    case "wire":
      return wire(pending(vector.mutation));
    case "batch": {
      const { max_mutations: maxMutations = 1000, max_bytes: maxBytes = 1 << 20 } = vector.limits ?? {};
      return seqs(batch(vector.pending.map(pending), { maxMutations, maxBytes }));
    }
    case "halved":
      return halved(vector.refused.map(pending));
    case "settle": {
      const settled = settle(vector.sent.map(pending), vector.results);
      return {
        applied: settled.applied.map(([mutation, version]) => [mutation.seq, version]),
        superseded: seqs(settled.superseded),
        rejected: settled.rejected.map(([mutation, error]) => [mutation.seq, error.code]),
        kept: seqs(settled.kept),
        obstacle: settled.obstacle?.code ?? null,
        remedy: settled.remedy,
      };
    }
    case "dependents": {
      const standing = new Set(vector.standing.map((name) => rowName(...name)));
      const causes = dependents(vector.parked.map(pending), vector.pending.map(pending), {
        refs: (name) => (vector.refs[name] ?? []).map(([field, ref]) => ({ name: field, ref })),
        stands: (name) => standing.has(name),
      });
      return [...causes].sort(([one], [two]) => one - two);
    }
    case "restamp": {
      const given = vector.pending.map((mutation) => pending({ ...mutation, handed: true }));
      const stamped = restamp(given, new Clock(vector.node, vector.latest), vector);
      expect(stamped).toEqual(given.map((mutation, place) => ({ ...mutation, at: stamped[place]?.at, handed: false })));
      return stamped.map((mutation) => mutation.at);
    }
    case "on_top":
      return onTop(vector.doc, vector.mutations.map(pending), entity(vector.key.columns, vector.key.types));
    case "changed":
      return changed(vector.doc, vector.wanted, new Set(vector.maps));
    default:
      return vector satisfies never;
  }
}

const outboxes = fc
  .array(
    fc.record({
      op: fc.constantFrom("put", "patch", "delete"),
      row: fc.constantFrom("a", "b", "c"),
      fields: fc.record({
        title: fc.string({ unit: "binary", maxLength: 8 }),
        parent: fc.constantFrom(null, "a", "b", "c"),
      }),
      group: fc.constantFrom(null, null, "g", "h"),
      schema: fc.constantFrom(1, 1, 1, 2),
      wall: fc.integer({ min: 0, max: 40 }),
    }),
    { maxLength: 14 },
  )
  .map((made) => made.map((mutation, place) => pending({ ...mutation, seq: place + 1 })));

describe("sending", () => {
  test("an empty outbox has no units", () => {
    expect([...units([])]).toEqual([]);
  });

  test("batches, one after the other, are the outbox: whole units, one number, within the limits if divisible", () => {
    fc.assert(
      fc.property(outboxes, fc.integer({ min: 1, max: 8 }), fc.integer({ min: 0, max: 1200 }), (outbox, most, room) => {
        const maxBytes = ENVELOPE_BYTES + room;
        for (let rest = outbox; rest.length > 0; ) {
          const taken = batch(rest, { maxMutations: most, maxBytes });
          expect(taken.length).toBeGreaterThan(0);
          expect(taken).toEqual(rest.slice(0, taken.length));
          expect(new Set(taken.map((mutation) => mutation.schema)).size).toBe(1);
          const parts = [...units(taken)];
          expect(parts).toEqual([...units(rest)].slice(0, parts.length));
          if (parts.length > 1) {
            const body = new TextEncoder().encode(JSON.stringify(taken.map(wire)));
            expect(taken.length).toBeLessThanOrEqual(most);
            expect(body.length).toBeLessThanOrEqual(maxBytes);
          }
          rest = rest.slice(taken.length);
        }
      }),
    );
  });

  test("bytes are counted as an encoder writes them", () => {
    const borders = fc.string({
      unit: fc.constantFrom(..."\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\u{10000}\u{10ffff}"),
    });
    fc.assert(
      fc.property(fc.oneof(borders, fc.string({ unit: "binary" })), (text) => {
        expect(utf8Length(text)).toBe(new TextEncoder().encode(text).length);
      }),
    );
  });
});

test("verdicts put each mutation in just one place, in order (I25)", () => {
  const answers = fc.array(
    fc.record({
      seq: fc.integer({ min: 0, max: 15 }),
      status: fc.constantFrom("applied", "superseded", "rejected", "retry"),
    }),
  );
  fc.assert(
    fc.property(outboxes, answers, (sent, results) => {
      const { applied, superseded, rejected, kept, obstacle } = settle(sent, results);
      const places = [applied.map(([mutation]) => mutation), superseded, rejected.map(([mutation]) => mutation), kept];
      for (const place of places) expect(seqs(place)).toEqual(seqs(place).sort((one, two) => one - two));
      expect(seqs(places.flat()).sort((one, two) => one - two)).toEqual(seqs(sent));
      expect(obstacle !== null).toBe(kept.length > 0);
    }),
  );
});

test("after parking, nothing left needs a row that only a parked put made, and no group is torn apart (I26)", () => {
  fc.assert(
    fc.property(outboxes, fc.subarray(["a", "b", "c"]), fc.infiniteStream(fc.boolean()), (outbox, standing, chance) => {
      const parked = outbox.filter(() => chance.next().value);
      const causes = dependents(parked, outbox, {
        refs: () => [{ name: "parent", ref: "tasks" }],
        stands: (name) => standing.some((row) => rowName("workspace:7", "tasks", row) === name),
      });
      const gone = new Set([...seqs(parked), ...causes.keys()]);
      for (const cause of causes.values()) expect(gone.has(cause)).toBe(true);
      for (const unit of units(outbox)) expect(new Set(unit.map(({ seq }) => gone.has(seq))).size).toBe(1);
      for (const [seq, cause] of causes) if (seqs(parked).includes(seq)) expect(cause).toBeLessThan(seq);
      const visible = new Set(standing);
      const unmade = new Set<string>();
      for (const { seq, op, row, fields } of outbox) {
        if (gone.has(seq)) {
          if (op === "put") unmade.add(row);
          continue;
        }
        const parent = fields?.parent;
        for (const needed of [op === "put" ? null : row, parent]) {
          if (typeof needed === "string" && unmade.has(needed)) expect(visible.has(needed)).toBe(true);
        }
        if (op === "put") visible.add(row);
        if (op === "delete") visible.delete(row);
      }
    }),
  );
});

test("new readings rise, lie above what the clock holds, and name no time that has not come yet (I6)", () => {
  const numbers = fc.integer({ min: 0, max: 40 });
  fc.assert(
    fc.property(outboxes, numbers, fc.integer({ min: -30, max: 30 }), numbers, (outbox, held, offset, now) => {
      const own = new Clock("b".repeat(16), reading(held, 3, "c".repeat(16)));
      const stamped = restamp(outbox, own, { offset, now });
      expect(seqs(stamped)).toEqual(seqs(outbox));
      let latest = reading(held, 3, "b".repeat(16));
      for (const { at, handed } of stamped) {
        expect(at > latest && Number.parseInt(at.slice(0, 12), 16) <= Math.max(now, held)).toBe(true);
        expect(handed).toBe(false);
        latest = at;
      }
    }),
  );
});

describe("rows", () => {
  const THINGS = entity(["id"], ["text"]);
  const keys = fc.oneof(
    fc.constantFrom("k", "a/b", "t~", "~1", "__proto__", "constructor"),
    fc.string({ minLength: 1 }),
  );
  const entries = fc
    .array(
      fc.tuple(
        keys,
        fc.jsonValue({ maxDepth: 2 }).filter((value) => value !== null),
      ),
      { maxLength: 5 },
    )
    .map((pairs) => Object.fromEntries(pairs));
  const documents = fc.record({
    title: fc.constantFrom("x", "y"),
    json: fc.jsonValue({ maxDepth: 3 }),
    labels: entries,
  });

  test("the patch of what changed gives what was wanted, is empty if nothing did, and repeats nothing", () => {
    fc.assert(
      fc.property(documents, documents, (held, wanted) => {
        const doc = { id: "a", ...held, created_at: "then", updated_at: "then" } as Fields;
        const patch = changed(doc, wanted as Fields, new Set(["labels"]));
        const shown = onTop(doc, [pending({ op: "patch", fields: patch })], THINGS);
        // Compared as JSON reads it: -0 is 0.
        const { title, json, labels } = JSON.parse(JSON.stringify(shown));
        expect({ title, json, labels }).toEqual(JSON.parse(JSON.stringify(wanted)));
        expect(changed(shown ?? {}, wanted as Fields, new Set(["labels"]))).toEqual({});
        for (const path of Object.keys(patch)) {
          const { [path]: _, ...others } = patch;
          const without = onTop(doc, [pending({ op: "patch", fields: others })], THINGS);
          expect(Object.keys(changed(without ?? {}, wanted as Fields, new Set(["labels"])))).toEqual([path]);
        }
      }),
    );
  });

  test("edits on top in two steps are the same as in one (I35)", () => {
    fc.assert(
      fc.property(fc.option(documents), outboxes, fc.nat(), (held, outbox, cut) => {
        const doc = held && ({ id: "a", ...held, created_at: "then", updated_at: "then" } as Fields);
        const place = cut % (outbox.length + 1);
        const first = onTop(doc, outbox.slice(0, place), THINGS);
        expect(onTop(first, outbox.slice(place), THINGS)).toEqual(onTop(doc, outbox, THINGS));
      }),
    );
  });
});

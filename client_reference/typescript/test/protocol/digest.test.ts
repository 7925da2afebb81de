/** The digest of a scope (SPEC 5). */

import { crc32 } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { MODULUS, ofRows, term, text } from "../../src/protocol/digest.ts";
import { vectors } from "./vectors.ts";

type Row = [entity: string, row: string, version: number];

test.each(vectors<{ claim: string; rows: Row[]; expect: string }>("digest.json"))(
  "$claim",
  ({ rows, expect: digest }) => {
    expect(ofRows(rows)).toBe(digest);
  },
);

const rows = fc.tuple(
  fc.stringMatching(/^[a-z][a-z0-9_]{0,8}$/),
  fc.stringMatching(/^[A-Za-z0-9._~:@-]{1,40}$/),
  fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
);

test("a row's term is zlib's CRC-32 of its name at its version", () => {
  fc.assert(
    fc.property(rows, ([entity, row, version]) => {
      expect(term(entity, row, version)).toBe(crc32(`${entity}/${row}@${version}`));
    }),
  );
});

test("a digest moved by differences is the one computed anew (I32)", () => {
  fc.assert(
    fc.property(fc.array(rows, { maxLength: 20 }), fc.nat(), (all, cut) => {
      const gone = all.slice(0, cut % (all.length + 1));
      const sum = (some: Row[]) => some.reduce((total, row) => total + term(...row), 0);
      expect(text(all.length - gone.length, sum(all) - sum(gone))).toBe(ofRows(all.slice(gone.length)));
      expect(text(0, -sum(all) + sum(all) - MODULUS)).toBe("0-000000000000");
    }),
  );
});

test("the sum wraps at 2^48, and below 0", () => {
  expect(text(1, MODULUS + 5)).toBe("1-000000000005");
  expect(text(1, -1)).toBe("1-ffffffffffff");
});

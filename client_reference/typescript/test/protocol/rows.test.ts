/** Names of rows, scopes and rooms (SPEC 1, SPEC 6). */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Rejection } from "../../src/protocol/errors.ts";
import type { ColumnType, Entity } from "../../src/protocol/model.ts";
import { escapeKey, sameValue, split } from "../../src/protocol/paths.ts";
import { checkValue, scopeOf } from "../../src/protocol/rooms.ts";
import { formatScope, keyValues, parseScope, rowProblem, scopeId, userScope } from "../../src/protocol/rows.ts";

const KEY = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

function keyed(...types: ColumnType[]): Entity {
  return {
    scope: { kind: "user", column: "user_id", type: "text" },
    key: { columns: types.map((_, place) => `k${place}`), types, per_scope: false },
    fields: {},
    index: [],
    unique: [],
    rules: [],
    display: {},
  };
}

describe("every key has one accepted spelling (I1)", () => {
  const good: [ColumnType[], string][] = [
    [["uuid"], KEY],
    [["text"], "a:b"],
    [["text"], "A-Za-z0.9_~:@-"],
    [["text"], "x".repeat(128)],
    [["integer"], "0"],
    [["integer"], "-9223372036854775808"],
    [["integer"], "9223372036854775807"],
    [["text", "integer", "uuid"], `a@b:-7:${KEY}`],
  ];
  test.each(good)("%s takes %s", (types, row) => {
    expect(rowProblem(keyed(...types), row)).toBeNull();
    expect(keyValues(keyed(...types), row)).toEqual(types.length === 1 ? [row] : row.split(":"));
  });

  const bad: [ColumnType[], unknown][] = [
    [["uuid"], KEY.toUpperCase()],
    [["uuid"], `${KEY}\n`],
    [["uuid"], KEY.replaceAll("-", "")],
    [["text"], ""],
    [["text"], "a b"],
    [["text"], "a/b"],
    [["text"], "é"],
    [["text"], "x".repeat(129)],
    [["text"], 7],
    [["text"], null],
    [["integer"], "07"],
    [["integer"], "-0"],
    [["integer"], "+1"],
    [["integer"], "9223372036854775808"],
    [["integer"], "1e3"],
    [["text", "text"], "a"],
    [["text", "text"], "a:"],
    [["text", "text"], ":a"],
    [["text", "text"], "a:b:c"],
    [["text", "integer"], "a:x"],
  ];
  test.each(bad)("%s refuses %s", (types, row) => {
    expect(rowProblem(keyed(...types), row)).toEqual(expect.any(String));
  });
});

describe("every scope has one accepted spelling (I1)", () => {
  test("what is formatted is parsed again", () => {
    const decoded = fc
      .string({ unit: "binary", minLength: 1, maxLength: 40 })
      .filter((id) => !id.includes("\0") && new TextEncoder().encode(id).length <= 128);
    fc.assert(
      fc.property(decoded, (id) => {
        const scope = formatScope("workspace", id);
        expect(parseScope(scope)).toEqual(["workspace", id]);
        expect(scopeId(scope)).toBe(id);
      }),
    );
  });

  test("what is parsed is formatted again, or is no scope", () => {
    const texts = fc.stringMatching(/^[a-z]{1,3}:(?:[A-Za-z0-9._~!'()*/-]|%[0-9A-Fa-f]{2}){1,6}$/);
    fc.assert(
      fc.property(texts, (text) => {
        let found: [string, string];
        try {
          found = parseScope(text);
        } catch (fault) {
          expect(fault).toBeInstanceOf(Error);
          return;
        }
        expect(formatScope(...found)).toBe(text);
      }),
    );
  });

  test("a subject is escaped where it must be", () => {
    expect(userScope("auth0|7")).toBe("user:auth0%7C7");
    expect(userScope("o'neil!(*)")).toBe("user:o%27neil%21%28%2A%29");
    expect(userScope("é")).toBe("user:%C3%A9");
    expect(userScope("%".repeat(128))).toBe(`user:${"%25".repeat(128)}`);
  });

  test.each(["", "\0", "\ud800", "x".repeat(129), "é".repeat(65)])("no scope has the id %j", (id) => {
    expect(() => formatScope("user", id)).toThrow();
  });

  test.each([
    "User:7",
    "7:7",
    ":7",
    "user:",
    "user",
    "user:a b",
    "user:%7c",
    "user:%41",
    "user:%C3",
    "user:%ED%A0%80",
    "user:%00",
    "user:7\n",
  ])("%j is no scope", (text) => {
    expect(() => parseScope(text)).toThrow();
  });
});

test("a room that is none, and a state that is no JSON, are malformed", () => {
  const malformed = expect.objectContaining({ code: "malformed" });
  for (const room of ["lobby", "workspace:7/", "workspace:7/a/b", "workspace:%41"]) {
    expect(() => scopeOf(room)).toThrow(malformed);
    expect(() => scopeOf(room)).toThrow(Rejection);
  }
  for (const state of [undefined, new Date(), "\ud800", Number.NaN] as unknown[]) {
    expect(() => checkValue("state", state as null)).toThrow(malformed);
  }
});

test("a path is split as it was put together", () => {
  fc.assert(
    fc.property(fc.string({ minLength: 1 }), (key) => {
      expect(split(`labels/${escapeKey(key)}`)).toEqual(["labels", key]);
    }),
  );
  expect(split("labels")).toEqual(["labels", null]);
});

test("values are the same that are the same JSON", () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.jsonValue(), (one, two) => {
      const copy = JSON.parse(JSON.stringify(one));
      expect(sameValue(one as null, copy)).toBe(true);
      expect(sameValue(one as null, two as null)).toBe(sameValue(two as null, one as null));
      expect(sameValue({ a: copy }, { a: [copy] })).toBe(false);
    }),
  );
});

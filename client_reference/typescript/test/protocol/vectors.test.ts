/** That no vectors go unread. */

import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { vectorFiles } from "./vectors.ts";

/** Files that speak of the server alone: what a client would make of them does not arise. */
const SERVER_ONLY = {
  "merge.json": "clients send writes and are given documents: only the server merges writes in any order of arrival",
  "watermark.json": "clients give watermarks back and do not read them (SPEC 1)",
  "conversion.json": "the server converts between schema numbers, in both directions (SPEC 10)",
};

test("every file of vectors is read here, or speaks of the server alone", () => {
  const here = new URL(".", import.meta.url);
  const others = readdirSync(here).filter((name) => name.endsWith(".test.ts") && name !== "vectors.test.ts");
  const sources = others.map((name) => readFileSync(new URL(name, here), "utf8")).join("");
  const read = vectorFiles().filter((file) => sources.includes(`"${file}"`));
  expect([...read, ...Object.keys(SERVER_ONLY)].sort()).toEqual(vectorFiles());
});

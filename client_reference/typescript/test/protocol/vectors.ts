/** The vectors that every implementation of the protocol reads. */

import { readdirSync, readFileSync } from "node:fs";

const FOLDER = new URL("../../../../sync_protocol/vectors/", import.meta.url);

/** The vectors of a file, each with its claim. */
export function vectors<T extends { readonly claim: string }>(file: string): T[] {
  return JSON.parse(readFileSync(new URL(file, FOLDER), "utf8"));
}

/** The names of all files of vectors. */
export function vectorFiles(): string[] {
  return readdirSync(FOLDER).sort();
}

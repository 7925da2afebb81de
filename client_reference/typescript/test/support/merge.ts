/** Section 3 of the protocol in small: what a write does to a row. */

import type { Fields, Json } from "../../src/protocol/model.ts";
import { sameValue, split } from "../../src/protocol/paths.ts";

export interface Write {
  readonly op: "put" | "patch" | "delete";
  readonly at: string;
  readonly fields: Fields;
}

/** One row as its scope knows it: its surviving paths with their clocks. */
export interface RowState {
  root: string;
  deleted: boolean;
  fields: Fields;
  clocks: Record<string, string>;
  created: string;
}

export interface Effect {
  readonly verdict: "applied" | "superseded" | "clock_reused";
  readonly state: RowState;
  readonly took: boolean;
}

export function latestOf({ root, clocks }: RowState): string {
  return [root, ...Object.values(clocks)].sort().at(-1) ?? root;
}

export function merge(state: RowState | null, write: Write): Effect {
  if (write.op === "patch") {
    if (state === null) throw new Error("a patch needs a row");
    return mergePatch(state, write);
  }
  const deleted = write.op === "delete";
  if (state !== null && state.root >= write.at) {
    const same = state.root === write.at && state.deleted === deleted;
    return { verdict: same ? "applied" : state.root > write.at ? "superseded" : "clock_reused", state, took: false };
  }
  const later = Object.entries(state?.clocks ?? {}).filter(([, at]) => at > write.at);
  const fields = deleted ? {} : structuredClone(write.fields);
  for (const [path] of later.sort()) carry(state?.fields ?? {}, fields, path);
  const created = deleted ? "" : state && !state.deleted ? state.created : write.at;
  return {
    verdict: "applied",
    state: { root: write.at, deleted, fields, clocks: Object.fromEntries(later), created },
    took: true,
  };
}

function mergePatch(state: RowState, { at, fields: values }: Write): Effect {
  const fields = structuredClone(state.fields);
  const clocks = { ...state.clocks };
  let took = false;
  let known = false;
  for (const [path, value] of Object.entries(values)) {
    const [field, key] = split(path);
    const held = state.clocks[path] ?? "";
    const above = key === null ? "" : (state.clocks[field] ?? "");
    if (state.root >= at || held > at || above >= at) continue;
    if (held === at) {
      known = true;
      continue;
    }
    took = true;
    set(fields, path, value);
    for (const inner of Object.keys(clocks).filter((other) => key === null && other.startsWith(`${field}/`))) {
      if ((clocks[inner] ?? "") <= at) delete clocks[inner];
      else carry(state.fields, fields, inner);
    }
    clocks[path] = at;
  }
  const verdict = (took || known) && !state.deleted ? "applied" : "superseded";
  return { verdict, state: took ? { ...state, fields, clocks } : state, took };
}

function set(fields: Fields, path: string, value: Json): void {
  const [field, key] = split(path);
  if (key === null) {
    fields[field] = value;
    return;
  }
  const entries = { ...(fields[field] as Fields | undefined) };
  if (value === null) delete entries[key];
  else entries[key] = value;
  fields[field] = entries;
}

/** Lay the value that `source` holds at `path` over `target`. */
function carry(source: Fields, target: Fields, path: string): void {
  const [field, key] = split(path);
  if (key === null) target[field] = source[field] ?? null;
  else set(target, path, (source[field] as Fields | undefined)?.[key] ?? null);
}

export function sameFields(one: Fields, two: Fields): boolean {
  return sameValue(one, two);
}

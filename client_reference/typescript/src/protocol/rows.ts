/** Names that travel: entities, rows and scopes, each with one spelling (SPEC 1). */

import { type ColumnType, type Entity, USER } from "./model.ts";

export const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

const ROW = /^[A-Za-z0-9._~:@-]{1,128}$/;
const SCOPE = /^([a-z][a-z0-9_]{0,31}):((?:[A-Za-z0-9._~-]|%[0-9A-F]{2}){1,128})$/;
const SPELLING = "a scope is written kind:id, the id 1 to 128 units, escaped where it has to be";
const INTEGER = /^(?:0|-?[1-9][0-9]{0,18})$/;

/** Why `row` cannot be a key of `entity` (`invalid_row`), or null. */
export function rowProblem(entity: Entity, row: unknown): string | null {
  if (typeof row !== "string" || !ROW.test(row)) return "a key is 1 to 128 of A-Z a-z 0-9 . _ ~ : @ -";
  const { columns, types } = entity.key;
  const parts = split(entity, row);
  if (parts.length !== types.length) return `the key has ${types.length} parts joined with ':' (${columns.join(", ")})`;
  for (const [at, type] of types.entries()) {
    const part = parts[at];
    const problem = part ? idProblem(type, part) : "must not be empty";
    if (problem !== null) return types.length === 1 ? problem : `${columns[at]}: ${problem}`;
  }
  return null;
}

/** Why `text` is not the canonical spelling of a key or scope column's value, or null. */
export function idProblem(type: ColumnType, text: string): string | null {
  if (type === "uuid" && !UUID.test(text)) return "must be a UUID in lower case with hyphens";
  if (type === "integer" && (!INTEGER.test(text) || BigInt.asIntN(64, BigInt(text)) !== BigInt(text))) {
    return "must be a 64-bit integer, without leading zeros";
  }
  return null;
}

/** The values of the key's columns for a `row` without problem: texts, as a document holds them (SPEC 5). */
export function keyValues(entity: Entity, row: string): string[] {
  return split(entity, row);
}

function split(entity: Entity, row: string): string[] {
  return entity.key.types.length === 1 ? [row] : row.split(":");
}

/** The own scope of the user that a token's `sub` names; an Error if it does not fit (`subject_unsupported`). */
export function userScope(sub: string): string {
  return formatScope(USER, sub);
}

/** The one spelling of a scope, from its kind and decoded id; an Error if there is none. */
export function formatScope(kind: string, decoded: string): string {
  // A lone surrogate is a URIError here.
  const encoded = encodeURIComponent(decoded).replace(
    /[!'()*]/g,
    (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  const scope = `${kind}:${encoded}`;
  if (!SCOPE.test(scope) || decoded.includes("\0")) throw new Error(SPELLING);
  return scope;
}

/** A scope's kind and decoded id; an Error unless `text` is the scope's one spelling (`invalid_scope`). */
export function parseScope(text: string): [kind: string, decoded: string] {
  const [, kind, encoded] = SCOPE.exec(text) ?? [];
  // Bytes that are no UTF-8 are a URIError here.
  const decoded = decodeURIComponent(encoded ?? "");
  if (!kind || formatScope(kind, decoded) !== text) throw new Error(SPELLING);
  return [kind, decoded];
}

/** The decoded id of a canonical `scope`, as the scope column holds it. */
export function scopeId(scope: string): string {
  return parseScope(scope)[1];
}

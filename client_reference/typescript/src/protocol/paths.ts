/** Paths of a patch, `field` or `field/key` (SPEC 3), and equality of JSON values. */

import type { Json } from "./model.ts";

/** A path's field and, for `field/key`, the unescaped key. */
export function split(path: string): [field: string, key: string | null] {
  const slash = path.indexOf("/");
  return slash < 0 ? [path, null] : [path.slice(0, slash), unescapeKey(path.slice(slash + 1))];
}

/** A map key as it stands in a path (RFC 6901). */
export function escapeKey(key: string): string {
  return key.replaceAll("~", "~0").replaceAll("/", "~1");
}

export function unescapeKey(token: string): string {
  return token.replaceAll("~1", "/").replaceAll("~0", "~");
}

/** JSON equality; the order of keys does not count, and `-0` is `0`. */
export function sameValue(left: Json | undefined, right: Json | undefined): boolean {
  if (left === right) return true;
  if (typeof left !== "object" || typeof right !== "object" || left === null || right === null) return false;
  if (Array.isArray(left) || Array.isArray(right)) {
    if (!Array.isArray(left) || !Array.isArray(right)) return false;
    return left.length === right.length && left.every((value, at) => sameValue(value, right[at]));
  }
  const keys = Object.keys(left);
  return (
    keys.length === Object.keys(right).length &&
    keys.every((key) => Object.hasOwn(right, key) && sameValue(left[key], right[key]))
  );
}

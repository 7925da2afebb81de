/** Rooms: how they are named, and what may be shown or said in them (SPEC 6). */

import { checkJson, MAX_NESTING } from "./checks.ts";
import { Rejection } from "./errors.ts";
import type { Json } from "./model.ts";
import { parseScope } from "./rows.ts";

const ROOM = /^([^/]*)(?:\/[A-Za-z0-9._~:-]{1,128})?$/;

/** The scope whose readers may join `room`; Rejection `malformed` unless it is `<scope>` or `<scope>/<name>`. */
export function scopeOf(room: string): string {
  const [, scope = ""] = ROOM.exec(room) ?? [];
  refusing("a room is a scope, or a scope, / and a name", () => parseScope(scope));
  return scope;
}

/** Rejection `malformed` unless `value` is JSON that may travel. How large it may be is for the server to say. */
export function checkValue(what: string, value: Json): void {
  refusing(`a ${what} is JSON, at most ${MAX_NESTING} deep`, () => checkJson(value, MAX_NESTING));
}

function refusing(what: string, check: () => unknown): void {
  try {
    check();
  } catch (fault) {
    throw new Rejection("malformed", `${what}: ${fault instanceof Error ? fault.message : fault}`);
  }
}

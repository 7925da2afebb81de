/** Frames of the server as they are read (SPEC 6). */

import type { ServerFrame } from "../generated/messages.ts";
import { isReading } from "./clock.ts";

/** The members that must be there, each with a value of its kind. */
const SAMPLES: { readonly [F in ServerFrame as F["t"]]: Partial<F> } = {
  welcome: { session: "", user: "", scopes: {}, revoked: [], clock: "", heartbeat: 0 },
  changes: { scope: "", from: 0, to: 0, head: 0, watermark: "", changes: [], clock: "" },
  behind: { scope: "", head: 0 },
  scope_added: { scope: "" },
  scope_revoked: { scope: "" },
  result: { results: [], clock: "" },
  authed: { exp: 0 },
  error: { code: "", message: "" },
  pong: { clock: "" },
  presence: { room: "" },
  broadcast: { room: "", from: { session: "", user: "" }, event: "" },
};

/**
 * A frame, or null for what is none, for one of an unknown kind, and for one with members missing: all are ignored, so
 * that a newer server can say more. A run that is missed for it shows as a gap, and is pulled.
 */
export function decodeServerFrame(text: string): ServerFrame | null {
  try {
    const frame: unknown = JSON.parse(text);
    return isFrame(frame) ? frame : null;
  } catch {
    return null;
  }
}

function isFrame(value: unknown): value is ServerFrame {
  if (!isObject(value) || typeof value.t !== "string" || !Object.hasOwn(SAMPLES, value.t)) return false;
  if (value.clock !== undefined && !isReading(value.clock)) return false;
  return Object.entries(SAMPLES[value.t as ServerFrame["t"]]).every(([member, sample]) => alike(value[member], sample));
}

function alike(value: unknown, sample: unknown): boolean {
  return typeof value === typeof sample && value !== null && Array.isArray(value) === Array.isArray(sample);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return alike(value, {});
}

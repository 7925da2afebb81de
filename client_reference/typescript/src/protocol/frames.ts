/** Frames of the server as they are read (SPEC 6). */

import type { ServerFrame } from "../generated/messages.ts";
import { isReading } from "./clock.ts";

/**
 * A frame, or null for what is none: it is ignored, so that a newer server can say more, and a run that is missed for it
 * shows as a gap, and is pulled. What a frame of a known kind holds is the service's affair.
 */
export function decodeServerFrame(text: string): ServerFrame | null {
  try {
    const frame = JSON.parse(text) as ServerFrame | null;
    const clock = (frame as { clock?: unknown } | null)?.clock;
    return typeof frame?.t === "string" && (clock === undefined || isReading(clock)) ? frame : null;
  } catch {
    return null;
  }
}

/** Connections and frames that the tests of the stream share. */

import { expect } from "vitest";
import type { Changes, ServerFrame, Welcome } from "../../src/generated/messages.ts";
import { decodeServerFrame } from "../../src/protocol/frames.ts";
import { ClientStream, type State } from "../../src/protocol/stream.ts";

export const CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
export const CLOCK = "0192f3a4b5c6-0000-00000000000000aa";
export const EXPIRES = 3_600; // seconds
export const WELCOME: Welcome = {
  t: "welcome",
  session: "s1",
  user: "ada",
  scopes: { "user:ada": 7 },
  revoked: ["a:9"],
  clock: CLOCK,
  heartbeat: 25,
};
export const PONG: ServerFrame = { t: "pong", clock: CLOCK, n: 1 };
export const RUN: Changes = {
  t: "changes",
  scope: "user:ada",
  from: 7,
  to: 8,
  head: 8,
  watermark: "m",
  changes: [],
  clock: CLOCK,
};
export const OBSERVE = { kind: "observe", clock: CLOCK };

/** A connection in a state, at time 0. */
export function streamIn(state: State, scopes: string[] | null = null): ClientStream {
  const stream = new ClientStream(CLIENT, 3, scopes);
  if (state !== "resting") stream.start(0);
  if (state === "greeting" || state === "live") stream.connected("token", EXPIRES, { "user:ada": "mark" }, 0);
  if (state === "live") stream.received(WELCOME, 0);
  if (state === "waiting") stream.closed(1012, "", 0, 0.5);
  if (state === "stopped") stream.closed(4409, "", 0, 0.5);
  expect(stream.state).toBe(state);
  return stream;
}

export function decoded(frame: ServerFrame): ServerFrame {
  const read = decodeServerFrame(JSON.stringify(frame));
  if (read === null) throw new Error(`not read as a frame: ${JSON.stringify(frame)}`);
  return read;
}

export const MEANINGS: [ServerFrame, object[]][] = [
  [RUN, [OBSERVE, { kind: "applyRun", run: RUN, asked: true }]],
  [{ t: "behind", scope: "a:1", head: 9 }, [{ kind: "pullScope", scope: "a:1", head: 9 }]],
  [{ t: "scope_added", scope: "a:1" }, [{ kind: "added", scope: "a:1" }]],
  [{ t: "scope_revoked", scope: "a:1" }, [{ kind: "revoke", scope: "a:1" }]],
  [{ t: "result", id: "p", results: [], clock: CLOCK }, [OBSERVE]],
  [{ t: "authed", exp: 9 }, []],
  [{ t: "error", code: "malformed", message: "why" }, [refusal("malformed", null, null)]],
  [{ t: "error", code: "too_large", message: "why", id: "p" }, [refusal("too_large", "p", null)]],
  [{ t: "error", code: "not_joined", message: "why", room: "a:1" }, [refusal("not_joined", null, "a:1")]],
  [{ t: "presence", room: "a:1", members: {} }, []],
  [{ t: "broadcast", room: "a:1", from: { session: "s2", user: "bob" }, event: "e", payload: 1 }, []],
];

export function refusal(code: string, id: string | null, room: string | null): object {
  return { kind: "refused", code, message: "why", id, room };
}

/** Rooms, as a client is in them (SPEC 6), and the vectors of the stream. */

import { describe, expect, test } from "vitest";
import type { ServerFrame } from "../../src/generated/messages.ts";
import { gather, type Members } from "../../src/protocol/clientRooms.ts";
import type { Json } from "../../src/protocol/model.ts";
import { checkValue, scopeOf } from "../../src/protocol/rooms.ts";
import { type ClientStream, retryHint } from "../../src/protocol/stream.ts";
import { decoded, EXPIRES, OBSERVE, streamIn, WELCOME } from "./streams.ts";
import { vectors } from "./vectors.ts";

// ── vectors ──────────────────────────────────────────────────────────────────────────────────────────────────────────

type Vector = { claim: string } & (
  | { kind: "room"; room: string; expect: string | null }
  | { kind: "frame"; frame: { room?: Json; state?: Json; payload?: Json }; expect: { error?: string } }
  | { kind: "presence"; steps: { frame: ServerFrame; members: Members | null }[] }
  | { kind: "retry"; reason: string; expect: number }
);

/** Frames that only a server can judge: by limits that are its own, or since no client that compiles sends them. */
const SERVERS_SAY: Record<string, string> = {
  "an event too long": "how long an event may be is for the server to say",
  "an empty event": "how long an event may be is for the server to say",
  "no event": "the type of `broadcast` asks for one",
  "no room": "the type of every method asks for one",
};

test.each(vectors<Vector>("stream.json"))("$kind: $claim", (vector) => {
  switch (vector.kind) {
    case "room":
      if (vector.expect === null)
        expect(() => scopeOf(vector.room)).toThrow(expect.objectContaining({ code: "malformed" }));
      else expect(scopeOf(vector.room)).toBe(vector.expect);
      break;
    case "frame": {
      const { room, state = null, payload = null } = vector.frame;
      const malformed = refusedHere(room, state, payload);
      if (vector.claim in SERVERS_SAY)
        expect([malformed, vector.expect.error]).toEqual([room === undefined, "malformed"]);
      else expect(malformed).toBe(vector.expect.error === "malformed");
      break;
    }
    case "presence": {
      const stream = streamIn("live");
      stream.join("workspace:7");
      let known: Members = {};
      for (const { frame, members } of vector.steps) {
        const effects = stream.received(decoded(frame), 0);
        expect(effects.length).toBe(members === null ? 0 : 1);
        for (const effect of effects) if (effect.kind === "gathered") known = gather(known, effect);
        if (members !== null) expect(known).toEqual(members);
      }
      break;
    }
    case "retry":
      expect(retryHint(vector.reason)).toBe(vector.expect);
      break;
    default:
      expect.fail(`nothing reads this vector: ${JSON.stringify(vector satisfies never)}`);
  }
});

function refusedHere(room: Json | undefined, state: Json, payload: Json): boolean {
  try {
    scopeOf(room as string);
    checkValue("state", state);
    checkValue("payload", payload);
    return false;
  } catch {
    return true;
  }
}

describe("rooms", () => {
  const ROOM = "workspace:7";
  const ALL: ServerFrame = { t: "presence", room: ROOM, members: { s1: { user: "ada", state: 1 } } };
  const sent = (...frames: object[]) => frames.map((frame) => ({ kind: "send", frame }));
  const refuse = (code: string): ServerFrame => ({ t: "error", code, message: "why", room: ROOM });

  function joined(): ClientStream {
    const stream = streamIn("live");
    expect(stream.join(ROOM, 1)).toEqual(sent({ t: "join", room: ROOM, state: 1 }));
    stream.received(ALL, 1);
    return stream;
  }

  test("rooms are joined again after every welcome, with the state shown last (I45)", () => {
    const stream = joined();
    expect(stream.show(ROOM, 2)).toEqual(sent({ t: "presence", room: ROOM, state: 2 }));
    stream.closed(null, "", 1, 0);
    stream.join("workspace:7/cards", 3);
    stream.start(600);
    stream.connected("token", EXPIRES, {}, 600);
    expect(stream.received({ ...WELCOME, revoked: [] }, 600)).toEqual([
      OBSERVE,
      ...sent({ t: "join", room: ROOM, state: 2 }, { t: "join", room: "workspace:7/cards", state: 3 }),
    ]);
    // What is left from the stay before does not count.
    expect(stream.received({ t: "presence", room: ROOM, left: ["s1"] }, 601)).toEqual([]);
  });

  test.each(["forbidden", "not_joined", "too_many_rooms"])("%s puts us out of a room we were in", (code) => {
    const stream = joined();
    stream.received(refuse(code), 2);
    expect([...stream.rooms.keys()]).toEqual([]);
  });

  test.each(["too_large", "room_full", "malformed"])("%s puts us out as the answer to a join only", (code) => {
    const inside = joined();
    inside.show(ROOM, 2);
    inside.received(refuse(code), 2);
    expect([...inside.rooms]).toEqual([[ROOM, 2]]);
    const asking = streamIn("live");
    asking.join(ROOM);
    asking.received(refuse(code), 2);
    expect([...asking.rooms]).toEqual([]);
  });

  test("a join that could not be looked into is asked for again after 2 s, and nothing is said before", () => {
    const stream = streamIn("live");
    stream.join(ROOM, 1);
    stream.received(refuse("unavailable"), 1_000);
    expect(stream.deadline).toBe(3_000);
    expect(stream.show(ROOM, 2)).toEqual([]);
    expect(stream.broadcast(ROOM, "e")).toEqual([]);
    expect(stream.elapsed(2_999, 0)).toEqual([]);
    expect(stream.elapsed(3_000, 0)).toEqual(sent({ t: "join", room: ROOM, state: 2 }));
  });

  test("left, or revoked with its scope, a room is no longer ours, and another scope's stays", () => {
    const stream = joined();
    stream.join("workspace:8");
    stream.received({ t: "scope_revoked", scope: ROOM }, 2);
    expect([...stream.rooms.keys()]).toEqual(["workspace:8"]);
    expect(stream.leave("workspace:8")).toEqual(sent({ t: "leave", room: "workspace:8" }));
    expect(stream.leave("workspace:8")).toEqual([]);
    expect(stream.received(ALL, 3)).toEqual([]);
  });

  test("what others say is heard in a room that we are in", () => {
    const said: ServerFrame = {
      t: "broadcast",
      room: ROOM,
      from: { session: "s2", user: "bob" },
      event: "e",
      payload: [1],
    };
    expect(joined().received(said, 2)).toEqual([
      { kind: "heard", room: ROOM, session: "s2", user: "bob", event: "e", payload: [1] },
    ]);
    expect(joined().broadcast(ROOM, "e", { a: 1 })).toEqual(
      sent({ t: "broadcast", room: ROOM, event: "e", payload: { a: 1 } }),
    );
    expect(joined().broadcast("workspace:8", "e")).toEqual([]);
  });

  test("what names no room, or is no JSON, is refused before anything is kept of it", () => {
    const stream = joined();
    const malformed = expect.objectContaining({ code: "malformed" });
    expect(() => stream.join("lobby")).toThrow(malformed);
    expect(() => stream.join("workspace:9", "\0")).toThrow(malformed);
    expect(() => stream.show(ROOM, "\ud800")).toThrow(malformed);
    expect([...stream.rooms]).toEqual([[ROOM, 1]]);
  });
});

/** The client's end of the stream (SPEC 6): what every event does in every state, and how it comes back. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Changes, ServerFrame, Welcome } from "../../src/generated/messages.ts";
import { gather, type Members } from "../../src/protocol/clientRooms.ts";
import { decodeServerFrame } from "../../src/protocol/frames.ts";
import type { Json } from "../../src/protocol/model.ts";
import { checkValue, scopeOf } from "../../src/protocol/rooms.ts";
import { ClientStream, type Effect, retryHint, type State } from "../../src/protocol/stream.ts";
import { vectors } from "./vectors.ts";

const CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
const CLOCK = "0192f3a4b5c6-0000-00000000000000aa";
const EXPIRES = 3_600; // seconds
const WELCOME: Welcome = {
  t: "welcome",
  session: "s1",
  user: "ada",
  scopes: { "user:ada": 7 },
  revoked: ["a:9"],
  clock: CLOCK,
  heartbeat: 25,
};
const PONG: ServerFrame = { t: "pong", clock: CLOCK, n: 1 };
const RUN: Changes = {
  t: "changes",
  scope: "user:ada",
  from: 7,
  to: 8,
  head: 8,
  watermark: "m",
  changes: [],
  clock: CLOCK,
};
const OBSERVE = { kind: "observe", clock: CLOCK };

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

function decoded(frame: ServerFrame): ServerFrame {
  const read = decodeServerFrame(JSON.stringify(frame));
  if (read === null) throw new Error(`not read as a frame: ${JSON.stringify(frame)}`);
  return read;
}

// ── states and events ────────────────────────────────────────────────────────────────────────────────────────────────

/** A connection in a state, at time 0. */
function streamIn(state: State, scopes: string[] | null = null): ClientStream {
  const stream = new ClientStream(CLIENT, 3, scopes);
  if (state !== "resting") stream.start(0);
  if (state === "greeting" || state === "live") stream.connected("token", EXPIRES, { "user:ada": "mark" }, 0);
  if (state === "live") stream.received(WELCOME, 0);
  if (state === "waiting") stream.closed(1012, "", 0, 0.5);
  if (state === "stopped") stream.closed(4409, "", 0, 0.5);
  expect(stream.state).toBe(state);
  return stream;
}

const EVENTS = {
  start: (stream) => stream.start(1),
  connected: (stream) => stream.connected("token", EXPIRES, {}, 1),
  welcome: (stream) => stream.received(WELCOME, 1),
  pong: (stream) => stream.received(PONG, 1),
  lost: (stream) => stream.closed(null, "", 1, 0.5),
  mismatch: (stream) => stream.closed(4409, "", 1, 0.5),
  expired: (stream) => stream.closed(4401, "", 1, 0.5),
  aDay: (stream) => stream.elapsed(86_400_000, 0.5),
  renewed: (stream) => stream.renewed("fresh", 2 * EXPIRES, 1),
  stop: (stream) => stream.stop(),
} satisfies Record<string, (stream: ClientStream) => Effect[]>;

/** What each event gives in each state, and the state after it where it is another one. */
const TABLE: Record<State, Record<keyof typeof EVENTS, [effects: string, after?: State]>> = {
  resting: {
    start: ["connect", "connecting"],
    connected: ["hang"],
    welcome: [""],
    pong: [""],
    lost: [""],
    mismatch: [""],
    expired: [""],
    aDay: [""],
    renewed: [""],
    stop: [""],
  },
  connecting: {
    start: [""],
    connected: ["send", "greeting"],
    welcome: [""],
    pong: [""],
    lost: ["", "waiting"],
    mismatch: ["stop", "stopped"],
    expired: ["renewToken", "waiting"],
    aDay: ["hang", "waiting"],
    renewed: [""],
    stop: ["hang", "resting"],
  },
  greeting: {
    start: [""],
    connected: ["hang"],
    welcome: ["observe, revoke", "live"],
    pong: ["observe"],
    lost: ["", "waiting"],
    mismatch: ["stop", "stopped"],
    expired: ["renewToken", "waiting"],
    aDay: ["hang", "waiting"],
    renewed: [""],
    stop: ["hang", "resting"],
  },
  live: {
    start: [""],
    connected: ["hang"],
    welcome: ["observe, revoke"],
    pong: ["observe"],
    lost: ["", "waiting"],
    mismatch: ["stop", "stopped"],
    expired: ["renewToken", "waiting"],
    aDay: ["renewToken, hang", "waiting"],
    renewed: ["send"],
    stop: ["hang", "resting"],
  },
  waiting: {
    start: ["connect", "connecting"],
    connected: ["hang"],
    welcome: [""],
    pong: [""],
    lost: [""],
    mismatch: [""],
    expired: [""],
    aDay: ["connect", "connecting"],
    renewed: [""],
    stop: ["", "resting"],
  },
  stopped: {
    start: [""],
    connected: ["hang"],
    welcome: [""],
    pong: [""],
    lost: [""],
    mismatch: [""],
    expired: [""],
    aDay: [""],
    renewed: [""],
    stop: ["", "resting"],
  },
};

const kinds = (effects: Effect[]) => effects.map((effect) => effect.kind).join(", ");
const CELLS = Object.entries(TABLE).flatMap(([state, row]) =>
  Object.entries(row).map(([event, cell]) => [state, event, cell] as [State, keyof typeof EVENTS, [string, State?]]),
);

test.each(CELLS)("%s, %s", (state, event, [effects, after = state]) => {
  const stream = streamIn(state);
  expect(kinds(EVENTS[event](stream))).toBe(effects);
  expect(stream.state).toBe(after);
  expect(stream.deadline === null).toBe(after === "resting" || after === "stopped");
});

const MEANINGS: [ServerFrame, object[]][] = [
  [RUN, [OBSERVE, { kind: "applyRun", run: RUN, asked: true }]],
  [{ t: "behind", scope: "a:1", head: 9 }, [{ kind: "pullScope", scope: "a:1", head: 9 }]],
  [{ t: "scope_added", scope: "a:1" }, [{ kind: "added", scope: "a:1" }]],
  [{ t: "scope_revoked", scope: "a:1" }, [{ kind: "revoke", scope: "a:1" }]],
  [{ t: "result", id: "p", results: [], clock: CLOCK }, [OBSERVE, { kind: "verdicts", id: "p", results: [] }]],
  [{ t: "authed", exp: 9 }, []],
  [{ t: "error", code: "malformed", message: "why" }, [refusal("malformed", null, null)]],
  [{ t: "error", code: "too_large", message: "why", id: "p" }, [refusal("too_large", "p", null)]],
  [{ t: "error", code: "not_joined", message: "why", room: "a:1" }, [refusal("not_joined", null, "a:1")]],
  [{ t: "presence", room: "a:1", members: {} }, []],
  [{ t: "broadcast", room: "a:1", from: { session: "s2", user: "bob" }, event: "e", payload: 1 }, []],
];

function refusal(code: string, id: string | null, room: string | null): object {
  return { kind: "refused", code, message: "why", id, room };
}

test.each(MEANINGS)("%j means", (frame, effects) => {
  expect(streamIn("live").received(decoded(frame), 1)).toEqual(effects);
});

describe("runs", () => {
  test("a run answers hello or follow once, later ones of the scope come unasked", () => {
    const stream = streamIn("live");
    stream.received(RUN, 1);
    expect(stream.received(RUN, 2)).toEqual([OBSERVE, { kind: "applyRun", run: RUN, asked: false }]);
    stream.follow(["user:ada"]);
    expect(stream.received(RUN, 3)).toEqual([OBSERVE, { kind: "applyRun", run: RUN, asked: true }]);
  });

  test("what is behind or revoked is not asked for any more", () => {
    for (const frame of [
      { t: "behind", scope: "user:ada", head: 9 },
      { t: "scope_revoked", scope: "user:ada" },
    ] satisfies ServerFrame[]) {
      const stream = streamIn("live");
      stream.received(frame, 1);
      expect(stream.received(RUN, 2)).toEqual([OBSERVE, { kind: "applyRun", run: RUN, asked: false }]);
    }
  });

  test("a narrowed stream names what it follows by now when it reconnects", () => {
    const stream = streamIn("resting", ["a:1", "a:2"]);
    stream.follow(["a:3", "a:2"]);
    stream.unfollow(["a:1"]);
    stream.start(0);
    expect(stream.connected("token", EXPIRES, { "a:2": "m" }, 0)).toEqual([
      {
        kind: "send",
        frame: {
          t: "hello",
          token: "token",
          client: CLIENT,
          schema: 3,
          watermark: { "a:2": "m" },
          scopes: ["a:2", "a:3"],
        },
      },
    ]);
  });

  test("nothing is sent before the welcome", () => {
    const stream = streamIn("greeting");
    expect(
      [stream.push("p", 3, []), stream.follow(["a:1"]), stream.unfollow(["a:1"]), stream.join("a:1")].flat(),
    ).toEqual([]);
  });
});

describe("coming back (I45)", () => {
  test.each([
    [4409, "upgrade"],
    [4403, "forbidden"],
    [4400, "fault"],
  ])("after %d reconnecting would not help: %s", (code, why) => {
    expect(streamIn("live").closed(code, "r", 1, 0.5)).toEqual([{ kind: "stop", why, reason: "r" }]);
  });

  test.each([1001, 1006, 1012, 1013, 4408, 4413, 4429, null])("after %s it waits", (code) => {
    const stream = streamIn("live");
    expect(stream.closed(code, "", 1, 0.5)).toEqual([]);
    expect(stream.state).toBe("waiting");
  });

  const chances = fc.double({ min: 0, max: 0.999, noNaN: true });

  test("each failure in a row doubles the delay up to a minute, and chance spreads it over half of it", () => {
    fc.assert(
      fc.property(fc.array(chances, { minLength: 1, maxLength: 20 }), (drawn) => {
        const stream = streamIn("resting");
        let now = 0;
        for (const [failures, chance] of drawn.entries()) {
          expect(kinds(stream.start(now))).toBe("connect");
          stream.closed(null, "", now, chance);
          const delay = Math.min(60_000, 500 * 2 ** failures);
          const waits = (stream.deadline ?? 0) - now;
          expect(waits >= delay / 2 && waits <= delay).toBe(true);
          now += waits;
        }
      }),
    );
  });

  test("a connection that lived makes the first delay short again", () => {
    const stream = streamIn("resting");
    for (let failures = 0; failures < 8; failures++) {
      stream.start(0);
      stream.closed(null, "", 0, 0.5);
    }
    stream.start(0);
    stream.connected("token", EXPIRES, {}, 0);
    stream.received(WELCOME, 0);
    stream.closed(1012, "", 10_000, 0.999);
    expect(stream.deadline).toBeLessThanOrEqual(10_500);
  });

  test("it stays away as long as it is asked to, a minute at most, whoever wants it back sooner", () => {
    const pauses = fc.oneof(fc.integer({ min: 0, max: 100_000 }), fc.integer({ min: 0, max: 999_999_999 }));
    fc.assert(
      fc.property(pauses, chances, fc.integer({ min: 0, max: 70_000 }), (pause, chance, later) => {
        const stream = streamIn("live");
        stream.closed(1012, `retry ${pause} ms; come back`, 0, chance);
        const due = stream.deadline ?? -1;
        const asked = Math.min(pause, 60_000);
        expect(due >= asked && due <= 60_000).toBe(true);
        stream.stop();
        const early = Math.min(later, due);
        expect(kinds(stream.start(early))).toBe(early < asked ? "" : "connect");
        if (early < asked) expect(kinds(stream.elapsed(stream.deadline ?? 0, chance))).toBe("connect");
      }),
    );
  });
});

describe("a live connection", () => {
  test("one heartbeat of silence is broken by a ping, two are the end, and any frame is a sign of life", () => {
    const stream = streamIn("live");
    expect(stream.elapsed(24_999, 0.5)).toEqual([]);
    expect(stream.elapsed(25_000, 0.5)).toEqual([{ kind: "send", frame: { t: "ping" } }]);
    stream.received(PONG, 30_000);
    expect(stream.elapsed(50_000, 0.5)).toEqual([]);
    expect(kinds(stream.elapsed(55_000, 0.5))).toBe("send");
    expect(stream.elapsed(79_999, 0.5)).toEqual([]);
    expect(kinds(stream.elapsed(80_000, 0.5))).toBe("hang");
    expect(stream.state).toBe("waiting");
  });

  test("a fresh token is asked for once, a minute before the old one runs out", () => {
    const stream = streamIn("live");
    const early = EXPIRES * 1_000 - 60_000;
    stream.received(PONG, early - 1);
    expect(stream.elapsed(early - 1, 0.5)).toEqual([]);
    expect(kinds(stream.elapsed(early, 0.5))).toBe("renewToken");
    expect(stream.elapsed(early + 1, 0.5)).toEqual([]);
    expect(stream.renewed("fresh", 2 * EXPIRES, early + 1)).toEqual([
      { kind: "send", frame: { t: "auth", token: "fresh" } },
    ]);
    stream.received(PONG, early + EXPIRES * 1_000 - 1);
    expect(kinds(stream.elapsed(early + EXPIRES * 1_000, 0.5))).toBe("renewToken");
  });
});

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

// ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────

test("every frame is read as it was written", () => {
  for (const frame of [WELCOME, PONG, RUN, ...MEANINGS.map(([frame]) => frame)]) expect(decoded(frame)).toEqual(frame);
  // Members that nobody knows yet are no trouble.
  expect(decodeServerFrame(JSON.stringify({ ...PONG, more: 1 }))).toMatchObject(PONG);
});

test.each([
  "",
  "{",
  "null",
  "[]",
  "7",
  '{"t": 7}',
  '{"t": "news"}',
  '{"t": "constructor"}',
  '{"t": "pong"}',
  '{"t": "pong", "clock": "now"}',
  JSON.stringify({ ...RUN, changes: {} }),
  JSON.stringify({ ...RUN, from: "7" }),
  JSON.stringify({ ...WELCOME, scopes: null }),
  JSON.stringify({ ...WELCOME, scopes: [] }),
])("%s is ignored", (text) => {
  expect(decodeServerFrame(text)).toBeNull();
});

// ── any sequence of events ───────────────────────────────────────────────────────────────────────────────────────────

const rooms = fc.constantFrom("workspace:7", "workspace:7/a", "user:ada");
const codes = fc.constantFrom("forbidden", "unavailable", "room_full", "malformed", "not_joined");
const frames: fc.Arbitrary<ServerFrame> = fc.oneof(
  fc.constantFrom(WELCOME, PONG, RUN, ...MEANINGS.map(([frame]) => frame)),
  fc.record({ t: fc.constant("error" as const), code: codes, message: fc.constant(""), room: rooms }),
  rooms.map((room) => ({ t: "presence" as const, room, members: {} })),
  rooms.map((scope) => ({ t: "scope_revoked" as const, scope })),
);
const chance = fc.double({ min: 0, max: 0.999, noNaN: true });
const closings = fc.constantFrom(null, 1001, 1006, 1012, 4400, 4401, 4403, 4409, 4429);
const reasons = fc.constantFrom("", "retry 1740 ms; away", "retry 999999999 ms");
type Happening = (stream: ClientStream, now: number) => Effect[];
const happenings: fc.Arbitrary<Happening> = fc.oneof(
  {
    weight: 4,
    arbitrary: frames.map(
      (frame): Happening =>
        (stream, now) =>
          stream.received(frame, now),
    ),
  },
  {
    weight: 3,
    arbitrary: chance.map(
      (drawn): Happening =>
        (stream, now) =>
          stream.elapsed(now, drawn),
    ),
  },
  fc.constant<Happening>((stream, now) => stream.start(now)),
  fc.integer({ min: -10, max: 4_000 }).map(
    (expires): Happening =>
      (stream, now) =>
        stream.connected("t", expires, {}, now),
  ),
  fc.tuple(closings, reasons, chance).map(
    ([code, reason, drawn]): Happening =>
      (stream, now) =>
        stream.closed(code, reason, now, drawn),
  ),
  fc.constant<Happening>((stream, now) => stream.renewed("t", now / 1_000 + 60, now)),
  fc.tuple(rooms, fc.jsonValue({ maxDepth: 2 })).map(
    ([room, state]): Happening =>
      (stream) =>
        stream.join(room, state as Json),
  ),
  rooms.map(
    (room): Happening =>
      (stream) => [...stream.show(room, 1), ...stream.broadcast(room, "e")],
  ),
  rooms.map(
    (room): Happening =>
      (stream) =>
        stream.leave(room),
  ),
  fc.constant<Happening>((stream) => [
    ...stream.follow(["a:1"]),
    ...stream.unfollow(["a:2"]),
    ...stream.push(1, 3, []),
  ]),
  fc.constant<Happening>((stream) => stream.stop()),
);

test("whatever happens, nothing is thrown, nothing is sent but by a connection, and there is always a way on", () => {
  const steps = fc.array(fc.tuple(happenings, fc.integer({ min: 0, max: 40_000 })), { maxLength: 40 });
  fc.assert(
    fc.property(steps, fc.option(fc.constant(["a:2"])), (happened, scopes) => {
      const stream = new ClientStream(CLIENT, 3, scopes);
      let now = 0;
      for (const [happen, later] of happened) {
        now += later;
        const before = stream.state;
        const effects = happen(stream, now);
        const up = stream.state === "live" || stream.state === "greeting";
        if (effects.some(({ kind }) => kind === "send")) expect(up || before === "live").toBe(true);
        if (effects.some(({ kind }) => kind === "connect")) expect(stream.state).toBe("connecting");
        expect(stream.deadline === null).toBe(stream.state === "resting" || stream.state === "stopped");
        expect(Number.isNaN(stream.deadline)).toBe(false);
      }
      // Left alone with a network that fails, it still tries to connect within two minutes, unless it is not to.
      for (let turns = 0; stream.deadline !== null && stream.state !== "connecting"; turns++) {
        expect(turns).toBeLessThan(6);
        now = Math.max(now, stream.deadline);
        stream.elapsed(now, 0.5);
      }
    }),
    { numRuns: 500 },
  );
});

/** The client's end of the stream (SPEC 6): what every event does in every state, and how it comes back. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ServerFrame } from "../../src/generated/messages.ts";
import type { ClientStream, Effect, State } from "../../src/protocol/stream.ts";
import { CLIENT, decoded, EXPIRES, MEANINGS, OBSERVE, PONG, RUN, streamIn, WELCOME } from "./streams.ts";

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

test.each(MEANINGS)("%j means", (frame, effects) => {
  expect(streamIn("live").received(decoded(frame), 1)).toEqual(effects);
});

describe("runs", () => {
  test("a run answers hello once, later ones of the scope come unasked", () => {
    const stream = streamIn("live");
    stream.received(RUN, 1);
    expect(stream.received(RUN, 2)).toEqual([OBSERVE, { kind: "applyRun", run: RUN, asked: false }]);
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

  test("a narrowed stream names its scopes whenever it connects", () => {
    const stream = streamIn("resting", ["a:1", "a:2"]);
    stream.start(0);
    const scopes = ["a:1", "a:2"];
    expect(stream.connected("token", EXPIRES, { "a:2": "m" }, 0)).toEqual([
      {
        kind: "send",
        frame: { t: "hello", token: "token", client: CLIENT, schema: 3, watermark: { "a:2": "m" }, scopes },
      },
    ]);
  });

  test("nothing is sent before the welcome", () => {
    const stream = streamIn("greeting");
    expect([...stream.join("a:1"), ...stream.show("a:1", 1), ...stream.broadcast("a:1", "e")]).toEqual([]);
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

  test("a connection that lived for 10 s makes the first delay short again, a shorter one does not", () => {
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
    stream.start(20_000);
    stream.connected("token", EXPIRES, {}, 20_000);
    stream.received(WELCOME, 20_000);
    stream.closed(1012, "", 29_999, 0.999);
    expect(stream.deadline).toBeGreaterThan(30_499);
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

describe("a clock that is set back", () => {
  const AHEAD = 7_200_000;

  test("does not put the next attempt off for as long as it went back", () => {
    const stream = streamIn("resting");
    stream.start(AHEAD);
    stream.closed(1012, "retry 50000 ms", AHEAD, 0.5);
    expect(kinds(stream.elapsed(0, 0.5))).toBe("connect");
  });

  test("does not keep anybody from connecting who looks at the page", () => {
    const stream = streamIn("resting");
    stream.start(AHEAD);
    stream.closed(1012, "", AHEAD, 0.5);
    expect(kinds(stream.start(0))).toBe("connect");
  });

  test("does not make a silent connection pass for a live one", () => {
    const stream = streamIn("live");
    stream.received(PONG, AHEAD);
    expect(stream.elapsed(0, 0.5)).toEqual([]);
    expect(kinds(stream.elapsed(25_000, 0.5))).toBe("send");
    expect(kinds(stream.elapsed(50_000, 0.5))).toBe("hang");
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

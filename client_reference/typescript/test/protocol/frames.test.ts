/** Frames as they are read, and whatever may happen to a connection (SPEC 6). */

import fc from "fast-check";
import { expect, test } from "vitest";
import type { ServerFrame } from "../../src/generated/messages.ts";
import { decodeServerFrame } from "../../src/protocol/frames.ts";
import type { Json } from "../../src/protocol/model.ts";
import { ClientStream, type Effect } from "../../src/protocol/stream.ts";
import { CLIENT, decoded, MEANINGS, PONG, RUN, streamIn, WELCOME } from "./streams.ts";

// ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────

test("every frame is read as it was written", () => {
  for (const frame of [WELCOME, PONG, RUN, ...MEANINGS.map(([frame]) => frame)]) expect(decoded(frame)).toEqual(frame);
  // Members that nobody knows yet are no trouble.
  expect(decodeServerFrame(JSON.stringify({ ...PONG, more: 1 }))).toMatchObject(PONG);
});

test.each(["", "{", "null", "[]", "7", '{"t": 7}', '{"t": "pong", "clock": "now"}'])("%s is no frame", (text) => {
  expect(decodeServerFrame(text)).toBeNull();
});

test("frames of a kind that nobody knows yet have no effect", () => {
  for (const t of ["news", "constructor"]) {
    expect(streamIn("live").received(decoded({ t } as unknown as ServerFrame), 1)).toEqual([]);
  }
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

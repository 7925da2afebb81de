/**
 * The client's end of the stream as a state machine (SPEC 6): frames, closings and time in, effects out.
 *
 *     resting ──start──► connecting ──connected──► greeting ──welcome──► live
 *                            ▲                        │                   │
 *                            └── waiting ◄── closed ──┴───────────────────┘      stopped: nobody may reconnect
 *
 * The caller carries out all effects of one call, in order, and calls `elapsed` no later than `deadline` says. Times
 * are Unix milliseconds; chance comes in as a number in [0, 1).
 *
 * Rooms that were joined and not left are joined again after every welcome, with the state shown last.
 */

import {
  CLOSE_FORBIDDEN_ORIGIN,
  CLOSE_MALFORMED,
  CLOSE_SCHEMA_MISMATCH,
  CLOSE_UNAUTHENTICATED,
} from "../generated/codes.ts";
import type { Changes, ClientFrame, ErrorFrame, ServerFrame, Welcome } from "../generated/messages.ts";
import { ClientRooms, type Gathered, type Heard } from "./clientRooms.ts";
import type { Json } from "./model.ts";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 60_000;
/** A connection that has lived this long was a good one: the next back-off starts from the beginning. */
const STEADY = 10_000;
/** A fresh token is asked for this long before the old one runs out, or at half its time if that is later. */
const RENEW_AHEAD = 60_000;
/** One that is as good as over is not asked for over and over again. */
const RENEW_AT_LEAST = 5_000;
/** How long connecting and greeting may take. */
const PATIENCE = 15_000;

/** Where a connection stands; `waiting`: backing off before the next attempt, `stopped`: refused for good. */
export type State = "resting" | "connecting" | "greeting" | "live" | "waiting" | "stopped";

/** Why reconnecting would not help: the app must be upgraded, the origin is forbidden, or the fault is our own. */
export type StopReason = "upgrade" | "forbidden" | "fault";

export type Effect =
  /** Open a websocket, then tell `connected`; if it fails, tell `closed`. */
  | { readonly kind: "connect" }
  | { readonly kind: "send"; readonly frame: ClientFrame }
  /** Drop the connection without waiting for the peer; `closed` has been taken into account. */
  | { readonly kind: "hang" }
  /** Get a fresh token and tell `renewed`. */
  | { readonly kind: "renewToken" }
  /** Advance the replica's clock to this reading (SPEC 2). */
  | { readonly kind: "observe"; readonly clock: string }
  /** Give this run to `judge`; `asked`: it answers our own hello or follow. */
  | { readonly kind: "applyRun"; readonly run: Changes; readonly asked: boolean }
  /** The stream will not carry this: pull the scope, at least up to `head`. */
  | { readonly kind: "pullScope"; readonly scope: string; readonly head: number }
  /** Delete the scope's rows; its unsent mutations become dead letters (SPEC 5). */
  | { readonly kind: "revoke"; readonly scope: string }
  /** The scope may be read now; its changes follow. */
  | { readonly kind: "added"; readonly scope: string }
  | Refused
  | Gathered
  | Heard
  | { readonly kind: "stop"; readonly why: StopReason; readonly reason: string };

/** A frame of ours was refused; `id` is a push's. We may have been put out of `room`, see `ClientStream.rooms`. */
export interface Refused {
  readonly kind: "refused";
  readonly code: string;
  readonly message: string;
  readonly id: string | number | null;
  readonly room: string | null;
}

/** How many ms a close reason asks the client to stay away; 0 if it does not. */
export function retryHint(reason: string): number {
  return Number(/^retry ([0-9]{1,9}) ms(?![0-9A-Za-z])/.exec(reason)?.[1] ?? 0);
}

/** One replica's connection, kept up for as long as it is wanted. */
export class ClientStream {
  readonly #client: string;
  readonly #schema: number;
  readonly #rooms = new ClientRooms();
  /** The scopes that the replica was narrowed to; null: all that may be read. */
  #scopes: string[] | null;
  #state: State = "resting";
  #attempts = 0;
  #renewAt: number | null = null;
  #heartbeat = 0;
  #heard = 0;
  #pinged = false;
  #since = 0;
  #until = 0;
  #barred = 0;
  /** Scopes whose next run answers our own hello or follow. */
  #asked = new Set<string>();

  constructor(client: string, schema: number, scopes: readonly string[] | null = null) {
    this.#client = client;
    this.#schema = schema;
    this.#scopes = scopes && [...scopes];
  }

  get state(): State {
    return this.#state;
  }

  /** The rooms that are joined, now or as soon as there is a connection, and the state shown in each. */
  get rooms(): ReadonlyMap<string, Json> {
    return this.#rooms.states;
  }

  /** When `elapsed` must be called next; null while resting or stopped. */
  get deadline(): number | null {
    switch (this.#state) {
      case "connecting":
      case "greeting":
      case "waiting":
        return this.#until;
      case "live": {
        const silence = this.#heard + this.#heartbeat * (this.#pinged ? 2 : 1);
        return Math.min(silence, this.#renewAt ?? Infinity, this.#rooms.again ?? Infinity);
      }
      case "resting":
      case "stopped":
        return null;
      default:
        return this.#state satisfies never;
    }
  }

  // ── events ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Connect as soon as the server allows: the first time, after a rest, or as the network is said to be back. */
  start(now: number): Effect[] {
    this.#mend(now);
    if (this.#state !== "resting" && this.#state !== "waiting") return [];
    if (now < this.#barred) {
      this.#enter("waiting", this.#barred);
      return [];
    }
    this.#enter("connecting", now + PATIENCE);
    return [{ kind: "connect" }];
  }

  /** The websocket is open; `expires` (Unix seconds) is the token's, `watermark` the replica's by now. */
  connected(token: string, expires: number, watermark: Record<string, string>, now: number): Effect[] {
    if (this.#state !== "connecting") return [{ kind: "hang" }];
    this.#enter("greeting", now + PATIENCE);
    this.#expect(expires, now);
    const [client, schema, scopes] = [this.#client, this.#schema, this.#scopes];
    return [{ kind: "send", frame: { t: "hello", token, client, schema, watermark, scopes } }];
  }

  /** A frame came. */
  received(frame: ServerFrame, now: number): Effect[] {
    if (this.#state !== "greeting" && this.#state !== "live") return [];
    this.#heard = now;
    this.#pinged = false;
    switch (frame.t) {
      case "welcome":
        return this.#welcomed(frame, now);
      case "changes": {
        const asked = this.#asked.delete(frame.scope);
        return [observe(frame.clock), { kind: "applyRun", run: frame, asked }];
      }
      case "behind":
        this.#asked.delete(frame.scope);
        return [{ kind: "pullScope", scope: frame.scope, head: frame.head }];
      case "scope_added":
        return [{ kind: "added", scope: frame.scope }];
      case "scope_revoked":
        this.#asked.delete(frame.scope);
        return this.#revoked(frame.scope);
      case "result":
        // Pushes go over HTTP: nothing of ours is answered here.
        return [observe(frame.clock)];
      case "authed":
        this.#expect(frame.exp, now);
        return [];
      case "error":
        return [this.#refused(frame, now)];
      case "pong":
        return [observe(frame.clock)];
      case "presence":
      case "broadcast":
        return this.#rooms.received(frame);
      default:
        frame satisfies never;
        return [];
    }
  }

  /** The connection ended with this close code, or could not be made (null). */
  closed(code: number | null, reason: string, now: number, chance: number): Effect[] {
    if (!this.#isUp()) return [];
    switch (code) {
      case CLOSE_SCHEMA_MISMATCH:
        return this.#stop("upgrade", reason);
      case CLOSE_FORBIDDEN_ORIGIN:
        return this.#stop("forbidden", reason);
      case CLOSE_MALFORMED:
        return this.#stop("fault", reason);
      default:
        this.#backOff(now, chance, reason);
        return code === CLOSE_UNAUTHENTICATED ? [{ kind: "renewToken" }] : [];
    }
  }

  /** Time has passed. */
  elapsed(now: number, chance: number): Effect[] {
    this.#mend(now);
    if (this.deadline === null || now < this.deadline) return [];
    if (this.#state === "waiting") return this.start(now);
    if (this.#state === "live") return this.#liveFor(now, chance);
    this.#backOff(now, chance);
    return [{ kind: "hang" }];
  }

  /** There is a fresh token, asked for or not. */
  renewed(token: string, expires: number, now: number): Effect[] {
    if (this.#state !== "live") return [];
    this.#expect(expires, now);
    return this.#sent([{ t: "auth", token }]);
  }

  /** Be in a room, now and after reconnecting; Rejection `malformed` for what names none, or a state that is no JSON. */
  join(room: string, state: Json = null): Effect[] {
    return this.#sent(this.#rooms.join(room, state));
  }

  /** Be in a room no more. */
  leave(room: string): Effect[] {
    return this.#sent(this.#rooms.leave(room));
  }

  /** Show another state in a joined room, now and after reconnecting; Rejection `malformed` if it is no JSON. */
  show(room: string, state: Json): Effect[] {
    return this.#sent(this.#rooms.show(room, state));
  }

  /** Say something to the others in a joined room; [] when there is no connection to say it on. */
  broadcast(room: string, event: string, payload: Json = null): Effect[] {
    return this.#sent(this.#rooms.broadcast(room, event, payload));
  }

  /** Rest until `start`. */
  stop(): Effect[] {
    const up = this.#isUp();
    this.#state = "resting";
    return up ? [{ kind: "hang" }] : [];
  }

  // ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  #enter(state: State, until: number): void {
    this.#state = state;
    this.#until = until;
  }

  /** The clock was set back: what lies further ahead than it can have been set is over. */
  #mend(now: number): void {
    if (this.#barred > now + LONGEST_DELAY) this.#barred = now;
    if (this.#until > now + LONGEST_DELAY) this.#until = now;
    this.#heard = Math.min(this.#heard, now);
  }

  #isUp(): boolean {
    return this.#state === "connecting" || this.#state === "greeting" || this.#state === "live";
  }

  #welcomed(frame: Welcome, now: number): Effect[] {
    this.#state = "live";
    this.#since = now;
    this.#heartbeat = Math.max(1, Math.round(frame.heartbeat * 1_000));
    this.#asked = new Set(Object.keys(frame.scopes));
    const revoked = frame.revoked.flatMap((scope) => this.#revoked(scope));
    return [observe(frame.clock), ...revoked, ...this.#sent(this.#rooms.welcomed())];
  }

  #revoked(scope: string): Effect[] {
    const message = "its scope may not be read any more";
    const out = this.#rooms.shutOut(scope);
    return [
      ...out.map((room): Effect => ({ kind: "refused", code: "forbidden", message, id: null, room })),
      { kind: "revoke", scope },
    ];
  }

  #refused({ code, message, id, room }: ErrorFrame, now: number): Refused {
    if (room !== undefined) this.#rooms.refused(room, code, now);
    return { kind: "refused", code, message, id: id ?? null, room: room ?? null };
  }

  #sent(frames: readonly ClientFrame[]): Effect[] {
    return this.#state === "live" ? frames.map((frame) => ({ kind: "send", frame })) : [];
  }

  /** A token to renew, rooms to ask for, or a silence to break: a ping after one heartbeat, the end after two. */
  #liveFor(now: number, chance: number): Effect[] {
    const effects: Effect[] = [];
    if (this.#renewAt !== null && now >= this.#renewAt) {
      this.#renewAt = null;
      effects.push({ kind: "renewToken" });
    }
    if (this.#rooms.again !== null && now >= this.#rooms.again) effects.push(...this.#sent(this.#rooms.askedAgain()));
    if (now >= this.#heard + 2 * this.#heartbeat) {
      this.#backOff(now, chance);
      effects.push({ kind: "hang" });
    } else if (now >= this.#heard + this.#heartbeat && !this.#pinged) {
      this.#pinged = true;
      effects.push(...this.#sent([{ t: "ping" }]));
    }
    return effects;
  }

  #expect(expires: number, now: number): void {
    const left = Math.max(0, expires * 1_000 - now);
    this.#renewAt = now + Math.max(left - RENEW_AHEAD, Math.floor(left / 2), RENEW_AT_LEAST);
  }

  /**
   * Wait half a delay and up to as much again by chance; the delay doubles with every failure in a row.
   *
   * It is no shorter than what the server asked for.
   */
  #backOff(now: number, chance: number, reason = ""): void {
    if (this.#state === "live" && now - this.#since >= STEADY) this.#attempts = 0;
    const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#attempts);
    this.#attempts += 1;
    this.#barred = now + Math.min(retryHint(reason), LONGEST_DELAY);
    this.#enter("waiting", Math.max(this.#barred, now + Math.round(delay * (0.5 + chance / 2))));
    this.#asked.clear();
  }

  #stop(why: StopReason, reason: string): Effect[] {
    this.#state = "stopped";
    return [{ kind: "stop", why, reason }];
  }
}

function observe(clock: string): Effect {
  return { kind: "observe", clock };
}

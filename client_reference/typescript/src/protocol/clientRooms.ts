/** The rooms of one client (SPEC 6): those it was asked to be in, and how each stands on the connection of now. */

import type { Broadcast, Broadcasted, Join, Leave, Member, Presence, SetPresence } from "../generated/messages.ts";
import type { Json } from "./model.ts";
import { checkValue, scopeOf } from "./rooms.ts";

/** How soon (ms) a room is asked for again whose join could not be looked into. */
const ASK_AGAIN = 2_000;
/** What only one who is not in a room is told about it. */
export const OUT: readonly string[] = ["forbidden", "not_joined", "too_many_rooms"];

/** Sessions, with whose they are and what they show. */
export type Members = Readonly<Record<string, Member>>;

/** Who is in a room, by session: all `members`, or (null) what changed in them since. */
export interface Gathered {
  readonly kind: "gathered";
  readonly room: string;
  readonly members: Members | null;
  readonly joined: Members;
  readonly changed: Members;
  readonly left: readonly string[];
}

/** Another session in the room said this to all in it. */
export interface Heard {
  readonly kind: "heard";
  readonly room: string;
  readonly session: string;
  readonly user: string;
  readonly event: string;
  readonly payload: Json;
}

/** Who is in the room now, if `known` were before. */
export function gather(known: Members, { members, joined, changed, left }: Gathered): Members {
  const stayed = Object.entries(members ?? known).filter(([session]) => !left.includes(session));
  return { ...Object.fromEntries(stayed), ...joined, ...changed };
}

/** How one room stands. */
interface Stay {
  state: Json;
  /** Of all that was sent about the room the join came last, and has no answer yet. */
  asked: boolean;
  /** All members have come. */
  inside: boolean;
  /** To be asked for again. */
  postponed: boolean;
}

/** What is given back is to be sent, if there is a connection. */
export class ClientRooms {
  readonly #stays = new Map<string, Stay>();
  #again: number | null = null;

  /** When `askedAgain` is due. */
  get again(): number | null {
    return this.#again;
  }

  /** The state shown, by room. */
  get states(): ReadonlyMap<string, Json> {
    return new Map([...this.#stays].map(([room, stay]) => [room, stay.state]));
  }

  /** Rejection `malformed` for what names no room, or a state that is no JSON. */
  join(room: string, state: Json): Join[] {
    scopeOf(room);
    checkValue("state", state);
    const stay = this.#stays.get(room) ?? { state, asked: false, inside: false, postponed: false };
    stay.state = state;
    this.#stays.set(room, stay);
    return [ask(room, stay)];
  }

  leave(room: string): Leave[] {
    const stay = this.#stays.get(room);
    this.#stays.delete(room);
    return stay === undefined || stay.postponed ? [] : [{ t: "leave", room }];
  }

  /** Rejection `malformed` for a state that is no JSON. */
  show(room: string, state: Json): SetPresence[] {
    checkValue("state", state);
    const stay = this.#stays.get(room);
    if (stay === undefined) return [];
    stay.state = state;
    return maySay(stay) ? [{ t: "presence", room, state }] : [];
  }

  /** Rejection `malformed` for a payload that is no JSON. */
  broadcast(room: string, event: string, payload: Json): Broadcast[] {
    checkValue("payload", payload);
    const stay = this.#stays.get(room);
    return stay !== undefined && maySay(stay) ? [{ t: "broadcast", room, event, payload }] : [];
  }

  /** A new connection has none of the rooms. */
  welcomed(): Join[] {
    this.#again = null;
    for (const stay of this.#stays.values()) stay.inside = false;
    return Array.from(this.#stays, ([room, stay]) => ask(room, stay));
  }

  /** Ask for the rooms that were postponed. */
  askedAgain(): Join[] {
    this.#again = null;
    return [...this.#stays].filter(([, stay]) => stay.postponed).map(([room, stay]) => ask(room, stay));
  }

  /** What comes before all members of a room is from an earlier stay in it. */
  received(frame: Presence | Broadcasted): (Gathered | Heard)[] {
    const { room } = frame;
    const stay = this.#stays.get(room);
    if (stay === undefined) return [];
    if (frame.t === "presence" && frame.members !== undefined) {
      stay.inside = true;
      stay.asked = stay.postponed = false;
    }
    if (!stay.inside) return [];
    if (frame.t === "broadcast") {
      const { from, event, payload } = frame;
      return [{ kind: "heard", room, session: from.session, user: from.user, event, payload }];
    }
    const { members = null, joined = {}, changed = {}, left = [] } = frame;
    return [{ kind: "gathered", room, members, joined, changed, left }];
  }

  /** Whoever is told a code of `OUT` is out; others answer a state or a broadcast, unless a join came last. */
  refused(room: string, code: string, now: number): void {
    const stay = this.#stays.get(room);
    if (stay === undefined || stay.postponed) return;
    if (code === "unavailable") {
      stay.postponed = true;
      this.#again = now + ASK_AGAIN;
    } else if (stay.asked || OUT.includes(code)) {
      this.#stays.delete(room);
    }
  }

  /** The scope may not be read any more; the rooms that one is out of. */
  shutOut(scope: string): string[] {
    const rooms = [...this.#stays.keys()].filter((room) => scopeOf(room) === scope);
    for (const room of rooms) this.#stays.delete(room);
    return rooms;
  }
}

function ask(room: string, stay: Stay): Join {
  stay.asked = !stay.inside;
  stay.postponed = false;
  return { t: "join", room, state: stay.state };
}

/** A room that is asked for again is told the state then, and nothing before. */
function maySay(stay: Stay): boolean {
  stay.asked = false;
  return !stay.postponed;
}

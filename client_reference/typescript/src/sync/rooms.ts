/**
 * Rooms (SPEC 6): who is there, what they show, what they say, never stored.
 *
 * The leading tab has the connection, so the tabs of one device are one session, which shows the state set last in any
 * of them; what one tab broadcasts, the others hear from their own session.
 */

import { gather, type Members, OUT } from "../protocol/clientRooms.ts";
import type { Json } from "../protocol/model.ts";
import { sameValue } from "../protocol/paths.ts";
import { checkValue, scopeOf } from "../protocol/rooms.ts";
import type { Engine } from "./engine.ts";
import { call, type Observed, Watched } from "./status.ts";
import type { RoomEvent, RoomWish, Tabs } from "./tabs.ts";

/** What somebody else said. */
export interface Said {
  readonly session: string;
  readonly user: string;
  readonly payload: Json;
}

/** Who is in a room, by session. */
export interface Presence {
  readonly members: Members;
  /** The same without this device. */
  readonly others: Members;
  /** Why this device is not in it, a code of SPEC 6; null if it is. */
  readonly problem: string | null;
}

/** One stay in a room, from `Tidemark.room` to `leave`. */
export interface Room {
  readonly name: string;
  /** What this device shows. */
  readonly state: Json;
  /** Who else is there, and what they show. */
  readonly others: Members;
  /** Who is there, to be watched. */
  readonly presence: Observed<Presence>;
  /** Show another state, at most 4 KiB of JSON. */
  show(state: Json): void;
  /** Say something to the others; lost where there is no connection. */
  broadcast(event: string, payload?: Json): void;
  /** Call back for each `event` that others say, until the result is called. */
  on(event: string, listener: (said: Said) => void): () => void;
  /** Leave; the room is left once nobody on this device is in it. */
  leave(): void;
}

const NOBODY: Presence = { members: {}, others: {}, problem: null };

/** A room as one tab knows it; there may be several stays in it. */
class Here {
  readonly presence = new Watched<Presence>(NOBODY);
  readonly listeners = new Set<{ event: string; tell: (said: Said) => void }>();
  state: Json = null;
  stays = 0;
}

/** The rooms of one tab. */
export class Rooms {
  readonly #tabs: Tabs;
  readonly #desk: Desk;
  readonly #session: () => string | null;
  readonly #here = new Map<string, Here>();

  /** `session` names this device's connection. */
  constructor(tabs: Tabs, desk: Desk, session: () => string | null) {
    this.#tabs = tabs;
    this.#desk = desk;
    this.#session = session;
  }

  /** Be in a room; without a `state` the one shown there already stays. Rejection `malformed` for what is none. */
  enter(name: string, state: Json | undefined): Room {
    scopeOf(name);
    const here = this.#here.get(name) ?? new Here();
    if (state !== undefined) {
      checkValue("state", state);
      here.state = state;
    }
    this.#here.set(name, here);
    here.stays += 1;
    this.#wish({ op: "join", room: name, state: here.state });
    return this.#stay(name, here);
  }

  /** Ask for the rooms that this tab is in, of one scope (`workspace:7/`) or of all. */
  announce(scope = ""): void {
    for (const [room, { state }] of this.#here)
      if (`${room}/`.startsWith(scope)) this.#wish({ op: "join", room, state });
  }

  /** Nobody is connected any more: who was there is not known. */
  dim(): void {
    for (const here of this.#here.values()) here.presence.set(NOBODY);
  }

  heard(event: RoomEvent): void {
    const here = event.room === null ? undefined : this.#here.get(event.room);
    if (here === undefined) return;
    if (event.kind === "gathered") {
      const members = gather(here.presence.value.members, event);
      const { [this.#session() ?? ""]: _, ...others } = members;
      here.presence.set({ members, others, problem: null });
    } else if (event.kind === "refused") {
      const still = OUT.includes(event.code) ? NOBODY : here.presence.value;
      here.presence.set({ ...still, problem: event.code });
    } else this.#tell(here, event.event, event);
  }

  #tell(here: Here, event: string, said: Said): void {
    for (const listener of [...here.listeners]) if (listener.event === event) call(() => listener.tell(said));
  }

  #stay(name: string, here: Here): Room {
    let left = false;
    const mine = new Set<() => void>();
    return {
      name,
      get state() {
        return here.state;
      },
      get others() {
        return here.presence.value.others;
      },
      presence: here.presence,
      show: (state) => {
        if (left || sameValue(here.state, state)) return;
        checkValue("state", state);
        here.state = state;
        this.#wish({ op: "show", room: name, state });
      },
      broadcast: (event, payload = null) => {
        if (left) return;
        checkValue("payload", payload);
        this.#wish({ op: "broadcast", room: name, event, payload });
      },
      on: (event, tell) => {
        const listener = { event, tell };
        const off = () => {
          here.listeners.delete(listener);
          mine.delete(off);
        };
        here.listeners.add(listener);
        mine.add(off);
        return off;
      },
      leave: () => {
        if (left) return;
        left = true;
        for (const off of mine) off();
        here.stays -= 1;
        if (here.stays > 0) return;
        this.#here.delete(name);
        this.#wish({ op: "leave", room: name });
      },
    };
  }

  #wish(wish: RoomWish): void {
    if (this.#tabs.leading) this.#desk.take(this.#tabs.id, wish);
    else this.#tabs.send({ t: "wish", tab: this.#tabs.id, wish });
  }
}

/** In the leading tab: what all tabs want of rooms, as one session. */
export class Desk {
  readonly #engine: Engine;
  readonly #tell: (event: RoomEvent, except: string | null) => void;
  /** By room, the tabs that are in it. */
  readonly #tabs = new Map<string, Set<string>>();

  /** `tell` all tabs but one what happens in rooms. */
  constructor(engine: Engine, tell: (event: RoomEvent, except: string | null) => void) {
    this.#engine = engine;
    this.#tell = tell;
  }

  take(tab: string, wish: RoomWish): void {
    const { room } = wish;
    const tabs = this.#tabs.get(room) ?? new Set();
    switch (wish.op) {
      case "join":
        this.#join(tab, room, wish.state, tabs);
        return;
      case "leave":
        if (tabs.delete(tab) && tabs.size === 0) this.#close(room);
        return;
      case "show":
        this.#engine.show(room, wish.state);
        return;
      case "broadcast":
        this.#engine.broadcast(room, wish.event, wish.payload);
        this.#tell({ kind: "heard", room, session: "", user: "", event: wish.event, payload: wish.payload }, tab);
        return;
      default:
        wish satisfies never;
    }
  }

  /** Tell all tabs what the service says of a room. */
  pass(event: RoomEvent): void {
    this.#tell(event, null);
  }

  /** A tab is gone. */
  gone(tab: string): void {
    for (const [room, tabs] of this.#tabs) if (tabs.delete(tab) && tabs.size === 0) this.#close(room);
  }

  /** This tab leads no more: the next leader is told by the tabs where they are. */
  clear(): void {
    for (const room of [...this.#tabs.keys()]) this.#close(room);
  }

  #join(tab: string, room: string, state: Json, tabs: Set<string>): void {
    tabs.add(tab);
    this.#tabs.set(room, tabs);
    this.#engine.join(room, state);
    // The service answers with all members again, to a tab that comes later too.
  }

  #close(room: string): void {
    this.#tabs.delete(room);
    this.#engine.leave(room);
  }
}

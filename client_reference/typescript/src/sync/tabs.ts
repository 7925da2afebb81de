/**
 * The tabs of one app on one device: any of them writes, one of them synchronises (Web Locks), all of them know how it
 * stands (BroadcastChannel).
 *
 * A lock is freed by the end of its tab. A tab that is frozen holds on to it and does nothing: so the others ask now and
 * then, and take the lock from a leader that does not answer. Two leaders for a moment are no harm: every answer is one
 * transaction, judged by what is stored, and replay changes nothing.
 */

import type { Gathered, Heard } from "../protocol/clientRooms.ts";
import type { Json } from "../protocol/model.ts";
import type { Refused } from "../protocol/stream.ts";
import { call, type Standing } from "./status.ts";
import type { Channel, Surroundings } from "./surroundings.ts";

/** What a tab wants of a room. */
export type RoomWish =
  | { readonly op: "join"; readonly room: string; readonly state: Json }
  | { readonly op: "leave"; readonly room: string }
  | { readonly op: "show"; readonly room: string; readonly state: Json }
  | { readonly op: "broadcast"; readonly room: string; readonly event: string; readonly payload: Json };

export type RoomEvent = Gathered | Heard | Refused;

export type Message =
  /** To the leader: are you there, and how does it stand? */
  | { readonly t: "ask" }
  /** To the leader: connect at once, if there is no connection. */
  | { readonly t: "start" }
  /** To the leader: the app's user may be another one. */
  | { readonly t: "signed_in" }
  | { readonly t: "wish"; readonly tab: string; readonly wish: RoomWish }
  /** To the leader: this tab is going. */
  | { readonly t: "bye"; readonly tab: string }
  /** From the leader. */
  | { readonly t: "standing"; readonly standing: Standing }
  | { readonly t: "became"; readonly user: string }
  | { readonly t: "room"; readonly event: RoomEvent }
  /** From the leader: ask for the rooms that you are in, of this scope (`workspace:7/`) or (empty) of all. */
  | { readonly t: "rooms?"; readonly scope: string };

/** How often a leader is asked for a sign of life, and how long it may take (ms). */
const ASK_EVERY = 5_000;
const ANSWER_WITHIN = 3_000;

export interface Role {
  /** This tab synchronises from now on. */
  lead(): void;
  /** It does not any more: another one took over. */
  follow(): void;
  heard(message: Message): void;
}

export class Tabs {
  readonly id: string;
  readonly #name: string;
  readonly #around: Surroundings;
  readonly #role: Role;
  #channel: Channel | null = null;
  #leading = false;
  #wanted = false;
  /** Frees the lock that is held. */
  #release: (() => void) | null = null;
  #waiting: AbortController | null = null;
  #forget: () => void = () => undefined;

  constructor(name: string, around: Surroundings, role: Role) {
    this.id = around.uuid();
    this.#name = `tidemark:${name}`;
    this.#around = around;
    this.#role = role;
    this.#listen();
  }

  get leading(): boolean {
    return this.#leading;
  }

  #listen(): void {
    this.#channel ??= this.#around.channel(this.#name);
    if (this.#channel !== null) this.#channel.onmessage = ({ data }) => this.#heard(data as Message);
  }

  /** Stand for leader. */
  open(): void {
    this.#listen();
    this.#wanted = true;
    this.#stand();
    this.send({ t: "ask" });
    this.#watch();
  }

  /** Let another tab lead; this one still hears. */
  resign(): void {
    this.#wanted = false;
    this.#forget();
    this.#waiting?.abort();
    this.#waiting = null;
    this.#step(false);
  }

  /** Say good-bye. */
  close(): void {
    this.resign();
    this.send({ t: "bye", tab: this.id });
    this.#channel?.close();
    this.#channel = null;
  }

  /** To all other tabs. */
  send(message: Message): void {
    this.#channel?.postMessage(message);
  }

  #heard(message: Message): void {
    if (message.t === "standing" || message.t === "rooms?") this.#watch();
    this.#role.heard(message);
  }

  /** Wait for the lock, or take it. */
  #stand(steal = false): void {
    const { locks } = this.#around;
    if (locks === null) {
      this.#step(true);
      return;
    }
    if (this.#waiting !== null && !steal) return;
    this.#waiting?.abort();
    const waiting = new AbortController();
    this.#waiting = waiting;
    const options: LockOptions = steal ? { steal } : { signal: waiting.signal };
    locks
      .request(this.#name, options, () => {
        // Aborted, but granted before that was heard.
        if (waiting.signal.aborted) return;
        return new Promise<void>((resolve) => {
          this.#release = resolve;
          call(() => this.#step(true));
        });
      })
      .catch((fault: Error) => {
        if (this.#waiting !== waiting) return;
        this.#waiting = null;
        this.#release = null;
        // Where locks are forbidden every tab synchronises.
        if (fault.name === "SecurityError" || fault.name === "InvalidStateError") return this.#step(true);
        // The lock was stolen: this tab was taken for dead.
        this.#step(false);
        if (this.#wanted) {
          this.#stand();
          this.#watch();
        }
      });
  }

  #step(leading: boolean): void {
    if (!leading) {
      this.#release?.();
      this.#release = null;
    }
    if (this.#leading === leading) return;
    this.#leading = leading;
    if (leading) this.#role.lead();
    else this.#role.follow();
  }

  /** Ask the leader for a sign of life after a while; one that gives none has lost its office. */
  #watch(): void {
    this.#forget();
    if (this.#leading || !this.#wanted || this.#channel === null || this.#around.locks === null) return;
    this.#forget = this.#around.after(ASK_EVERY, () => {
      this.send({ t: "ask" });
      this.#forget = this.#around.after(ANSWER_WITHIN, () => {
        if (this.#isHidden()) this.#watch();
        else if (!this.#leading) this.#stand(true);
      });
    });
  }

  /** The timers of a hidden tab are late: what seems silent may be its own sleep. */
  #isHidden(): boolean {
    return this.#around.document?.visibilityState === "hidden";
  }
}

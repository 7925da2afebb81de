/** What an app may show about synchronisation. */

import type { Progress } from "./puller.ts";

/**
 * How the leading tab stands with the service.
 *
 * `paused`: it was told to rest. `connecting`: on its way, or backing off after a failure. `live`: changes come as they
 * happen. `polling`: they come by long poll, since no websocket gets through. `offline`: the browser says that there is
 * no network. `needs-auth`: nobody is signed in, or the token is not accepted. `needs-upgrade`: the service does not
 * serve this app's schema number; the outbox is kept. `refused`: the service refuses this app for good.
 */
export type Connection =
  | "paused"
  | "connecting"
  | "live"
  | "polling"
  | "offline"
  | "needs-auth"
  | "needs-upgrade"
  | "refused";

/** Why the last attempt failed, for people; `code` is stable. */
export interface Problem {
  readonly code: string;
  readonly message: string;
}

/** What the leading tab knows, and tells the others. */
export interface Standing {
  readonly connection: Connection;
  readonly problem: Problem | null;
  /** Of the first synchronisation, while it lasts; null otherwise. */
  readonly firstSync: Progress | null;
  /** When the replica last held everything (the device's own ms), null if never. */
  readonly lastSync: number | null;
  /** The server's time less the device's (ms), null before it was measured. */
  readonly offset: number | null;
  /** Names this device's connection in rooms (SPEC 6); null before there was one. */
  readonly session: string | null;
}

export interface Status extends Standing {
  /** Whose rows these are; null before anybody has signed in on this device. */
  readonly user: string | null;
  /** Mutations that the service has not answered yet. */
  readonly pending: number;
  /** When the oldest of them was made (the device's own ms), null if there is none. */
  readonly pendingSince: number | null;
  /** Mutations that were rejected and wait for the app's decision. */
  readonly rejected: number;
  /** Nothing is pending, nothing is rejected. */
  readonly inSync: boolean;
  /** Whether this tab synchronises for all. */
  readonly leader: boolean;
  /** The schema number that this app was built with. */
  readonly schema: number;
}

/** A value that can be read at any time, and watched. */
export interface Observed<T> {
  readonly value: T;
  /** Call back after every change, until the result is called. */
  subscribe(listener: () => void): () => void;
}

export class Watched<T> implements Observed<T> {
  #value: T;
  readonly #listeners = new Set<() => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get value(): T {
    return this.#value;
  }

  set(value: T): void {
    this.#value = value;
    for (const listener of [...this.#listeners]) call(listener);
  }

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };
}

/** What the app does when it is told is its own affair: a fault in there is said, and stops nothing here. */
export function call(listener: () => void): void {
  try {
    listener();
  } catch (fault) {
    console.error(fault);
  }
}

export const AT_REST: Standing = {
  connection: "paused",
  problem: null,
  firstSync: null,
  lastSync: null,
  offset: null,
  session: null,
};

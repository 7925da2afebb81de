/** The world outside, as the engine sees it: everything that a test or a simulation may want to replace. */

import type { Chance } from "../store/store.ts";
import { uuidv7 } from "./uuid.ts";

/** A websocket, as far as it is used. */
export type Socket = Pick<WebSocket, "send" | "close" | "onopen" | "onmessage" | "onclose">;

/** Messages between the tabs of one origin. */
export type Channel = Pick<BroadcastChannel, "postMessage" | "close" | "onmessage">;

/** Time, chance, network, tabs and page, as `Options.around` may replace them. */
export interface Surroundings extends Chance {
  /** As the browser's `fetch`. */
  fetch(url: string, request: RequestInit): Promise<Response>;
  /** Open a websocket with this subprotocol. */
  socket(url: string, protocol: string): Socket;
  /** Call back after so many ms; the result takes it back. */
  after(ms: number, callback: () => void): () => void;
  /** Web Locks; null where there are none: then every tab synchronises, which is wasteful but sound. */
  readonly locks: LockManager | null;
  /** Null: there is no other tab to talk to. */
  channel(name: string): Channel | null;
  /** Outlives the database, to notice its loss. */
  readonly storage: Pick<Storage, "getItem" | "setItem" | "removeItem"> | null;
  readonly document: Document | null;
  /** Hears of `online`, `offline`, `focus`, `pageshow`, `pagehide`. */
  readonly window: Window | null;
  readonly navigator: Navigator | null;
}

/** The browser's own. */
export function browser(): Surroundings {
  const page = typeof document === "undefined" ? null : document;
  const agent = typeof navigator === "undefined" ? null : navigator;
  return {
    now: () => Date.now(),
    random: () => Math.random(),
    uuid: () => uuidv7(Date.now(), crypto.getRandomValues(new Uint8Array(16))),
    fetch: (url, request) => fetch(url, request),
    socket: (url, protocol) => new WebSocket(url, protocol),
    after: (ms, callback) => {
      const timer = setTimeout(callback, ms);
      return () => clearTimeout(timer);
    },
    locks: agent?.locks ?? null,
    channel: (name) => (typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel(name)),
    storage: page === null ? null : localStorageOf(),
    document: page,
    window: page === null ? null : window,
    navigator: agent,
  };
}

/** Reading it may be forbidden, as in a sandboxed frame. */
function localStorageOf(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

/** The websocket of one connection (SPEC 6), from opening to its end, told to whoever keeps it. */

import { SUBPROTOCOL } from "../generated/codes.ts";
import type { ClientFrame, ServerFrame } from "../generated/messages.ts";
import { decodeServerFrame } from "../protocol/frames.ts";
import type { Socket, Surroundings } from "./surroundings.ts";

export interface Listener {
  opened(): void;
  received(frame: ServerFrame): void;
  /** Null: the connection could not be made, or was lost without a word. */
  closed(code: number | null, reason: string): void;
}

export class Wire {
  #socket: Socket | null;

  constructor(url: string, around: Surroundings, listener: Listener) {
    const socket = around.socket(url, SUBPROTOCOL);
    this.#socket = socket;
    socket.onopen = () => listener.opened();
    socket.onmessage = ({ data }) => {
      const frame = typeof data === "string" ? decodeServerFrame(data) : null;
      if (frame !== null) listener.received(frame);
    };
    socket.onclose = ({ code, reason }) => {
      this.#socket = null;
      listener.closed(code, reason);
    };
  }

  send(frame: ClientFrame): void {
    this.#socket?.send(JSON.stringify(frame));
  }

  /** Let go without waiting: the listener hears nothing more. */
  drop(): void {
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }
}

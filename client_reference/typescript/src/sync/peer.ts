/** What the parts of the engine work with. */

import type { Outbox } from "../store/outbox.ts";
import type { Replica } from "../store/replica.ts";
import type { Store } from "../store/store.ts";
import type { Server } from "./server.ts";
import type { Surroundings } from "./surroundings.ts";
import type { Tokens } from "./tokens.ts";

export interface Peer {
  readonly store: Store;
  readonly replica: Replica;
  readonly outbox: Outbox;
  readonly server: Server;
  readonly tokens: Tokens;
  readonly around: Surroundings;
  /** The scopes to replicate; null: all that may be read. */
  readonly scopes: readonly string[] | null;
  /** Told of what should not be: a digest that is not the server's. */
  report(fault: Report): void;
}

/** A fault to be looked into; the replica has mended itself, or tries to. */
export interface Report {
  readonly code: "digest" | "storage_lost" | "unexpected";
  readonly message: string;
}

/** Tasks one after the other: each begins when the one before it has ended, however. */
export class Lane {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(task: () => Promise<T>): Promise<T> {
    const next = this.#last.then(task, task);
    this.#last = next.catch(() => undefined);
    return next;
  }
}

/** Pushes: the outbox in order, one request at a time, until it is empty (SPEC 4). */

import { MAX_MUTATIONS } from "../generated/codes.ts";
import { halved, type Pending, type Settled } from "../protocol/outbox.ts";
import type { ReplicaRecord } from "../store/records.ts";
import { alone } from "./alone.ts";
import { Temporary, TooMuch, Upgrade } from "./faults.ts";
import type { Peer } from "./peer.ts";
import type { Who } from "./server.ts";

/** A deviation of clocks below this many ms is left alone. */
const TOLERANCE = 500;
/** How often a push that the service puts off is sent again at once, its readings corrected. */
const TRIES = 3;

export class Pusher {
  readonly #peer: Peer;

  constructor(peer: Peer) {
    this.#peer = peer;
  }

  /** Measure the offset; what was never handed over is stamped anew if it was made by a wrong one (SPEC 2). */
  async measure(): Promise<void> {
    const { server, store, outbox } = this.#peer;
    const time = await server.time();
    const { offset } = await store.read([], (inside) => inside.replica());
    await store.write([], (inside) => inside.observe(time.clock));
    if (offset === null || Math.abs(time.offset - offset) > Math.max(TOLERANCE, time.error)) {
      await outbox.correct(null, time.offset, time.now);
    }
  }

  /** Send until the outbox is empty, or until the service cannot take more now: then Temporary, Upgrade, …. */
  async push(): Promise<void> {
    const { outbox, store } = this.#peer;
    const { offset } = await store.read([], (inside) => inside.replica());
    if (offset === null) await this.measure();
    let limit = MAX_MUTATIONS;
    let tries = 0;
    const once = async (): Promise<boolean> => {
      const { sending, who } = await outbox.handOver(limit);
      if (sending.length === 0) return false;
      try {
        const settled = await this.#send(sending, who);
        limit = Math.min(2 * limit, MAX_MUTATIONS);
        tries = settled.kept.length === 0 ? 0 : tries + 1;
        if (settled.kept.length > 0) await this.#overcome(settled, who, tries);
      } catch (fault) {
        if (!(fault instanceof TooMuch)) throw fault;
        limit = await this.#sendLess(sending, who, fault);
      }
      return true;
    };
    while (await alone(this.#peer, once));
  }

  async #send(sending: readonly Pending[], who: ReplicaRecord): Promise<Settled> {
    const { server, outbox, scopes } = this.#peer;
    const answer = await server.push(who, sending);
    return outbox.settle(sending, answer, who, scopes);
  }

  /** After a push was refused whole: how many to send next. What is refused alone becomes a dead letter. */
  async #sendLess(sending: readonly Pending[], { client }: Who, refused: TooMuch): Promise<number> {
    const less = halved(sending);
    if (less !== null) return less;
    if (!refused.final) throw new Temporary(refused.message);
    await this.#peer.outbox.refuse(sending, { code: refused.code, message: refused.message }, client);
    return MAX_MUTATIONS;
  }

  /** Do what the obstacle of a `retry` asks for, or give up for now. */
  async #overcome({ obstacle, remedy, kept }: Settled, { client }: Who, tries: number): Promise<void> {
    const { server, store, outbox } = this.#peer;
    const said = obstacle?.message ?? "not now";
    if (remedy === "upgrade") {
      const { schema } = store.declaration;
      if (!obstacle || kept.some((mutation) => mutation.schema >= schema)) throw new Upgrade(said);
      // What an older app wrote, under a number that is no longer converted, no upgrade makes good (SPEC 4).
      return outbox.refuse(kept, obstacle, client);
    }
    if (remedy !== "restamp" || tries > TRIES) throw new Temporary(said);
    const time = await server.time();
    await store.write([], (inside) => inside.observe(time.clock));
    await outbox.correct(kept[0]?.seq ?? null, time.offset, time.now);
  }
}

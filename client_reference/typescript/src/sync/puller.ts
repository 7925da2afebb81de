/** Pulls: streamed until caught up, or one page at a time where the stream cannot be had (SPEC 5). */

import type { Changes, PullRequest, Run, Trailer } from "../generated/messages.ts";
import { META, type ReplicaRecord } from "../store/records.ts";
import type { Circumstances } from "../store/replica.ts";
import { Temporary } from "./faults.ts";
import type { Peer } from "./peer.ts";
import type { Who } from "./server.ts";

/** Changes in one line of a streamed pull; each line is one transaction, so that readers get their turn. */
const PAGE = 1_000;
/** Seconds that the service may hold a poll. */
const WAIT = 25;

/** How far the first synchronisation has got, in versions. */
export interface Progress {
  readonly done: number;
  readonly total: number;
}

export class Puller {
  readonly #peer: Peer;
  readonly #onProgress: (progress: Progress | null) => void;
  #heads = new Map<string, Progress>();

  constructor(peer: Peer, onProgress: (progress: Progress | null) => void) {
    this.#peer = peer;
    this.#onProgress = onProgress;
  }

  /** Take in all that is new; a scope whose digest is wrong is pulled anew, once. */
  async pull(): Promise<void> {
    const first = (await this.#peer.replica.standings()).length === 0;
    this.#heads = new Map();
    try {
      if (first) this.#onProgress({ done: 0, total: 0 });
      if ((await this.#once(first)) > 0 && (await this.#once(first)) > 0) {
        throw new Temporary("the digest stays wrong");
      }
    } finally {
      if (first) this.#onProgress(null);
    }
  }

  /** Wait for something new; what is given back takes it in, and says whether there was any. */
  async ask(signal: AbortSignal): Promise<() => Promise<boolean>> {
    const who = await this.#who();
    const answer = await this.#peer.server.poll(who, { ...(await this.#request(who)), wait: WAIT }, signal);
    return async () => {
      // A reset came meanwhile: what was asked for before it means less (SPEC 5).
      if ((await this.#who()).resets !== who.resets) return true;
      for (const run of answer.scopes) await this.take(run, { asked: true, client: who.client });
      await this.#finish(answer, who, !answer.more);
      return answer.scopes.length > 0;
    };
  }

  #who(): Promise<ReplicaRecord> {
    return this.#peer.store.read([], (inside) => inside.replica());
  }

  async #request({ client }: Who): Promise<PullRequest> {
    const { store, replica, scopes } = this.#peer;
    const { schema } = store.declaration;
    return { client, schema, watermark: await replica.watermark(), scopes: scopes && [...scopes], limit: PAGE };
  }

  /** One streamed pull; how many scopes have to be pulled again. */
  async #once(first: boolean): Promise<number> {
    let faulty = 0;
    const who = await this.#who();
    for await (const item of this.#peer.server.pull(who, await this.#request(who))) {
      if ("readable" in item) await this.#finish(item, who, true);
      else {
        if (await this.take(item, { asked: true, client: who.client })) faulty += 1;
        if (first) this.#tell(item);
      }
    }
    return faulty;
  }

  /** Take a run in, from pull or stream; whether its scope has to be pulled, since something is missing or wrong. */
  async take(run: Run | Changes, how: Circumstances): Promise<boolean> {
    const { mustPull, faulty } = await this.#peer.replica.apply(run, how);
    const message = `the digest of ${run.scope} is not the service's: it is pulled anew`;
    if (faulty) this.#peer.report({ code: "digest", message });
    return mustPull || faulty;
  }

  #tell({ scope, to, head }: Run): void {
    this.#heads.set(scope, { done: to, total: head });
    const all = [...this.#heads.values()];
    const sum = (part: (progress: Progress) => number) => all.reduce((total, progress) => total + part(progress), 0);
    this.#onProgress({ done: sum(({ done }) => done), total: sum(({ total }) => total) });
  }

  async #finish({ clock, readable, revoked }: Trailer, { client }: Who, complete: boolean): Promise<void> {
    const { store, replica, around, scopes } = this.#peer;
    await store.write([], async (inside) => {
      await inside.mustBe(client);
      await inside.observe(clock);
      if (complete) await inside.put(META, [{ ...(await inside.replica()), synced: around.now() }]);
    });
    for (const scope of revoked) await replica.revoke(scope, client);
    await replica.lapseBeyond(readable, client);
    for (const { scope } of scopes ? await replica.standings() : [])
      if (!scopes?.includes(scope)) await replica.forget(scope, client);
  }
}

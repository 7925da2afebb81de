/** One at a time, over all tabs and workers of a database (Web Locks). */

import type { Peer } from "./peer.ts";

/** How long another one is waited for (ms); one that is frozen would be waited for for ever. */
const PATIENCE = 60_000;

/** A client has one push in flight (SPEC 4), wherever it comes from. */
export async function alone<T>({ around, store }: Pick<Peer, "around" | "store">, push: () => Promise<T>): Promise<T> {
  const { locks } = around;
  if (locks === null) return push();
  const name = `tidemark:${store.db.name}:push`;
  const late = new AbortController();
  const forget = around.after(PATIENCE, () => late.abort());
  let begun = false;
  const held = () => {
    forget();
    begun = true;
    return push();
  };
  try {
    return await locks.request(name, { signal: late.signal }, held);
  } catch (fault) {
    forget();
    if (begun) throw fault;
    // It never came, or locks are forbidden here.
    return late.signal.aborted ? locks.request(name, { steal: true }, push) : push();
  }
}

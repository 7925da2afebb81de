/**
 * For a service worker: pushes after the last tab is closed, where the browser has Background Sync.
 *
 * That the app itself loads offline is the work of its build (Workbox, vite-plugin-pwa): see the package's README.
 */

import { tagOf } from "./background.ts";
import { type Options, Tidemark } from "./tidemark.ts";

interface SyncEvent extends Event {
  readonly tag: string;
  waitUntil(work: Promise<unknown>): void;
}

/**
 * Push what waits in the outbox whenever the browser says so. Takes the options of the app; `fetchToken` has to work
 * without a page, as one does that asks the app's own server with its cookie.
 */
export function pushInBackground<T>(options: Options<T>): void {
  self.addEventListener("sync", (event) => {
    const { tag, waitUntil } = event as SyncEvent;
    if (tag === tagOf(options.name ?? "tidemark")) waitUntil.call(event, pushOnce(options));
  });
}

/** Open the database, push, pull, close; rejects if there was no way, so that the browser tries again later. */
export async function pushOnce<T>(options: Options<T>): Promise<void> {
  const db = new Tidemark({ ...(options as Options<unknown>), start: false });
  try {
    await db.synchronise();
  } finally {
    db.close();
  }
}

/** Background Sync, where the browser has it: a push after the tab is closed (WICG Background Synchronization). */

import type { Surroundings } from "./sync/surroundings.ts";

interface SyncRegistration {
  readonly sync?: { register(tag: string): Promise<void> };
}

/** The tag under which the database of this name asks for a push. */
export function tagOf(name: string): string {
  return `tidemark:${name}`;
}

/** Ask for a push when there is a network again, whether or not a tab is open then. */
export async function askForPush({ navigator }: Surroundings, name: string): Promise<void> {
  const worker = navigator?.serviceWorker;
  if (!worker?.controller) return;
  const registration = (await worker.ready) as SyncRegistration;
  // The user may have forbidden it; tabs push by themselves then.
  await registration.sync?.register(tagOf(name)).catch(() => undefined);
}

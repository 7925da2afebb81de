/** What happens to a page, as far as it matters: network, focus, freezing, going. */

import type { Surroundings } from "./sync/surroundings.ts";

export interface PageEvents {
  /** The network is back, or somebody looks: connect at once. */
  awake(): void;
  /** The browser says that there is no network. */
  offline(): void;
  /** Nobody looks any more; the page may never get another turn. */
  hidden(): void;
  /** The page stops: frozen, or kept for a way back. */
  suspended(): void;
  resumed(): void;
  gone(): void;
}

/** Listen until the result is called. */
export function watchPage({ document, window }: Surroundings, events: PageEvents): () => void {
  const listening = new AbortController();
  const { signal } = listening;
  window?.addEventListener("online", () => events.awake(), { signal });
  window?.addEventListener("offline", () => events.offline(), { signal });
  window?.addEventListener("focus", () => events.awake(), { signal });
  window?.addEventListener("pagehide", ({ persisted }) => (persisted ? events.suspended() : events.gone()), { signal });
  window?.addEventListener("pageshow", ({ persisted }) => persisted && events.resumed(), { signal });
  document?.addEventListener("freeze", () => events.suspended(), { signal });
  document?.addEventListener("resume", () => events.resumed(), { signal });
  document?.addEventListener(
    "visibilitychange",
    () => (document.visibilityState === "hidden" ? events.hidden() : events.awake()),
    { signal },
  );
  return () => listening.abort();
}

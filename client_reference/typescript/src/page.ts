/** What happens to a page, as far as it matters: network, focus, freezing, going. */

import type { Surroundings } from "./sync/surroundings.ts";

export interface PageEvents {
  /** The network is back, or somebody looks: connect at once. */
  awake(): void;
  /** The browser says that there is no network. */
  offline(): void;
  /** Nobody looks any more; the page may never get another turn. */
  hidden(): void;
  /** The page stops: for good, frozen, or kept for a way back. */
  gone(): void;
  /** It was not for good. */
  back(): void;
}

/** Listen until the result is called. */
export function watchPage({ document, window }: Surroundings, events: PageEvents): () => void {
  const listening = new AbortController();
  const { signal } = listening;
  window?.addEventListener("online", () => events.awake(), { signal });
  window?.addEventListener("offline", () => events.offline(), { signal });
  window?.addEventListener("focus", () => events.awake(), { signal });
  window?.addEventListener("pagehide", () => events.gone(), { signal });
  window?.addEventListener("pageshow", ({ persisted }) => persisted && events.back(), { signal });
  document?.addEventListener("freeze", () => events.gone(), { signal });
  document?.addEventListener("resume", () => events.back(), { signal });
  document?.addEventListener(
    "visibilitychange",
    () => (document.visibilityState === "hidden" ? events.hidden() : events.awake()),
    { signal },
  );
  return () => listening.abort();
}

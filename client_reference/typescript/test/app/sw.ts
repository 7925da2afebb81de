/** The app's service worker: the app loads offline, and writes are pushed after the last tab is closed. */

import { type PrecacheEntry, precacheAndRoute } from "workbox-precaching";

import { pushInBackground } from "../../src/service-worker.ts";
import { optionsOf } from "./options.ts";

/** What there is of a ServiceWorkerGlobalScope. */
declare const self: {
  readonly __WB_MANIFEST: PrecacheEntry[];
  readonly location: Location;
  readonly clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(
    type: "install" | "activate",
    listener: (event: { waitUntil(work: Promise<void>): void }) => void,
  ): void;
};

precacheAndRoute(self.__WB_MANIFEST, { ignoreURLParametersMatching: [/./] });
pushInBackground(optionsOf(self.location.search));
self.addEventListener("install", (event) => event.waitUntil(self.skipWaiting()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

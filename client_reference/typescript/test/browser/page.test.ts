/** What a real page is told when it is put aside, and when it comes back. */

import { expect, test } from "vitest";
import { device, somebody, until } from "./devices.ts";

test("a page that is put aside lets go of everything before Dexie does, and connects when it is back", async () => {
  const db = device(somebody());
  await until(db, ({ connection }) => connection === "live");
  const say = (what: string) => window.dispatchEvent(new PageTransitionEvent(what, { persisted: true }));
  say("pagehide");
  expect(db.status.value.leader).toBe(false);
  expect(db.isOpen()).toBe(false);
  // Whoever wanted it open again would have begun by now.
  await new Promise((resolve) => requestIdleCallback(resolve));
  expect(db.isOpen()).toBe(false);
  say("pageshow");
  await until(db, ({ connection }) => connection === "live");
  await db.delete();
});

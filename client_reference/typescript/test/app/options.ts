/** How page and service worker open the database: by what the address says. */

import { type Tables as CalendarTables, schema as calendar } from "../../../../examples/calendar/generated/schema.ts";
import {
  type Tables as ProductionsTables,
  schema as productions,
} from "../../../../examples/productions/generated/schema.ts";
import type { Options } from "../../src/index.ts";

export type Tables = CalendarTables & ProductionsTables;

/**
 * `schema`: `productions`, else the calendar. `number`: another schema number than the declared one. `service`: where
 * the service is, if not at the page's own origin. `signInPatience` as the client knows it.
 */
export function optionsOf(search: string): Options<Tables> {
  const asked = new URLSearchParams(search);
  const shared = asked.get("schema") === "productions";
  const { declaration, stores } = shared ? productions : calendar;
  const number = Number(asked.get("number") ?? declaration.schema);
  return {
    url: asked.get("service") ?? "/",
    schema: { declaration: { ...declaration, schema: number }, stores },
    name: shared ? "productions" : "calendar",
    ...(asked.has("signInPatience") ? { signInPatience: Number(asked.get("signInPatience")) } : {}),
    fetchToken,
  };
}

/** The app's own server knows by a cookie who is signed in. */
async function fetchToken(): Promise<string | null> {
  const answer = await fetch("/token", { cache: "no-store" });
  if (answer.status === 401) return null;
  if (!answer.ok) throw new Error(`no token (${answer.status})`);
  return answer.text();
}

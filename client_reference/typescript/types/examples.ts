/** What the compiler is to say of code over generated types; each line below an `@ts-expect-error` must be refused. */

import type { Table } from "dexie";
import type { Tables as Airports } from "../../../examples/airports/generated/schema.ts";
import { useUserCalendars, useUserCategory } from "../../../examples/calendar/generated/hooks.ts";
import type { UserCalendarUpdate, UserCategoryInsert } from "../../../examples/calendar/generated/schema.ts";
import { useOrderLineItem } from "../../../examples/orders/generated/hooks.ts";
import type { OrderInsert } from "../../../examples/orders/generated/schema.ts";
import type { ProjectTaskInsert } from "../../../examples/productions/generated/schema.ts";
import type { TableTypes } from "../src/schema.ts";

// What may be left out: a key that the client draws, the user's own scope, and what has a default or may be null.
export const category: UserCategoryInsert = { name: "Work" };
export const dated: UserCategoryInsert = { name: "Work", color: "red", created_at: "2026-11-30T00:00:00.000000Z" };
export const task: ProjectTaskInsert = { workspace_id: "7", production_id: "…", title: "Lights", due: null };

// @ts-expect-error a required field is missing
export const nameless: UserCategoryInsert = { color: "red" };
// @ts-expect-error a shared row says where it lives
export const homeless: ProjectTaskInsert = { production_id: "…", title: "Lights" };
// @ts-expect-error a key that is no UUID is given
export const keyless: OrderInsert = { tenant_id: "7", customer_key: 1, order_date: "…", order_priority: "5-LOW" };
// @ts-expect-error an enum has its values alone
export const unknown: ProjectTaskInsert = { workspace_id: "7", production_id: "…", title: "Lights", status: "open" };
// @ts-expect-error null only where it is declared
export const nulled: UserCategoryInsert = { name: null };

// An update may name one key of a map, and never the key, the scope or the times.
export const update: UserCalendarUpdate = { visible: false, "reminders.10m": true, "reminders.1h": undefined };
// @ts-expect-error the key of a row stays
export const rekeyed: UserCalendarUpdate = { id: "…" };
// @ts-expect-error `feed` is one value
export const pathed: UserCalendarUpdate = { "feed.url": "…" };

export const everyTable: Record<keyof Airports, TableTypes> = {} as Airports;
export const key: Airports["airports"]["key"] = ["7", "OSL"];

export function Calendars(): string | null {
  const visible = useUserCalendars((table) => table.where({ type: "user" }).filter((row) => row.visible));
  const sorted = useUserCalendars((table) => table.orderBy("type").toArray(), ["type"]);
  const category = useUserCategory(visible?.[0]?.category_id);
  const line = useOrderLineItem(["1", "2"]);
  // @ts-expect-error a key of two columns is two texts
  useOrderLineItem("1:2");
  // @ts-expect-error there is no such field
  sorted?.map((row) => row.colour);
  return category ? category.name : (line?.ship_mode ?? null);
}

export type Rows = Table<Airports["airports"]["row"], Airports["airports"]["key"]>;

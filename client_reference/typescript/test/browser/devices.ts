/** Devices of users, each with a database of its own in this browser, against the real service. */

import { inject } from "vitest";
import { schema, type Tables } from "../../../../examples/calendar/generated/schema.ts";
import type { Options } from "../../src/index.ts";
import { type Database, tidemark } from "../../src/index.ts";
import { tokenFor } from "./tokens.ts";

export type Device = Database<Tables>;

let made = 0;

/** A user whom no other test knows. */
export function somebody(): string {
  made += 1;
  return `user-${Date.now().toString(36)}-${made}`;
}

/** A device of `user`, in a tab of its own. */
export function device(user: string, options: Partial<Options<Tables>> = {}): Device {
  const { url, secret } = inject("service");
  made += 1;
  return tidemark<Tables>({
    url,
    schema,
    name: `device-${Date.now().toString(36)}-${made}`,
    fetchToken: () => tokenFor(user, secret),
    persist: false,
    onReport: (report) => {
      throw new Error(`${report.code}: ${report.message}`);
    },
    ...options,
  });
}

/** Wait until a device's status is as wanted. */
export function until(db: Device, wanted: (status: Device["status"]["value"]) => boolean): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (!wanted(db.status.value)) return;
      off();
      resolve();
    };
    const off = db.status.subscribe(look);
    look();
  });
}

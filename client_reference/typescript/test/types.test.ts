/** What the compiler knows of an app's tables: each line that must not compile says so. */

import { expect, test } from "vitest";
import type { Tables } from "../../../examples/productions/generated/schema.ts";
import type { Database } from "../src/index.ts";

/** Compiled, never run. */
const compiled = (db: Database<Tables>) => {
  void db.project_tasks.update("id", { title: "a", "labels.urgent": true });
  void db.project_tasks.update("id", (row) => {
    row.labels.urgent = true;
  });
  // @ts-expect-error a row keeps its key
  void db.project_tasks.update("id", { id: "other" });
  // @ts-expect-error and its scope
  void db.project_tasks.update("id", { workspace_id: "8" });
  // @ts-expect-error the server keeps it
  void db.project_tasks.update("id", { created_at: "2026-11-30T00:00:00.000000Z" });
  // @ts-expect-error no value of the enum
  void db.project_tasks.update("id", { status: "gone" });
  // @ts-expect-error required
  void db.project_tasks.add({ workspace_id: "7" });
  // @ts-expect-error no such table
  void db.project_taks;
  return db.transaction("rw", db.project_tasks, db.productions, () =>
    db.project_tasks.where({ status: "todo" }).count(),
  );
};

test("the types compile as the lines of this file say", () => {
  expect(compiled).toBeTypeOf("function");
});

/**
 * The tables of the tests: notes of one's own with a field of every kind that matters; tasks, tags (keys hold within
 * their scope) and seats (keys of two columns) of workspaces. As `tidemark codegen typescript` writes them.
 */

import type { Json } from "../../src/protocol/model.ts";
import type { Schema } from "../../src/schema.ts";

export interface Note {
  id: string;
  user_id: string;
  title: string;
  body: string;
  count: number | null;
  price: string | null;
  done: boolean;
  day: string | null;
  labels: Record<string, Json>;
  extra: Json;
  note_id: string | null;
  created_at: string;
  updated_at: string;
}

export interface NoteInsert {
  id?: string;
  user_id?: string;
  title: string;
  body?: string;
  count?: number | null;
  price?: string | null;
  done?: boolean;
  day?: string | null;
  labels?: Record<string, Json>;
  extra?: Json;
  note_id?: string | null;
  created_at?: string;
  updated_at?: string;
}

export interface NoteUpdate {
  title?: string;
  body?: string;
  count?: number | null;
  price?: string | null;
  done?: boolean;
  day?: string | null;
  labels?: Record<string, Json>;
  [path: `labels.${string}`]: Json | undefined;
  extra?: Json;
  note_id?: string | null;
}

export interface Task {
  id: string;
  workspace_id: string;
  title: string;
  task_id: string | null;
  created_at: string;
  updated_at: string;
}

export interface TaskInsert {
  id?: string;
  workspace_id: string;
  title: string;
  task_id?: string | null;
  created_at?: string;
  updated_at?: string;
}

export interface TaskUpdate {
  title?: string;
  task_id?: string | null;
}

export interface Tag {
  tag: string;
  workspace_id: string;
  color: string;
  created_at: string;
  updated_at: string;
}

export interface TagInsert {
  tag: string;
  workspace_id: string;
  color?: string;
  created_at?: string;
  updated_at?: string;
}

export interface TagUpdate {
  color?: string;
}

export interface Seat {
  hall: string;
  seat: string;
  workspace_id: string;
  taken: boolean;
  created_at: string;
  updated_at: string;
}

export interface SeatInsert {
  hall: string;
  seat: string;
  workspace_id: string;
  taken?: boolean;
  created_at?: string;
  updated_at?: string;
}

export interface SeatUpdate {
  taken?: boolean;
}

/** The types of each table. */
export interface Tables {
  notes: {
    row: Note;
    insert: NoteInsert;
    update: NoteUpdate;
    key: string;
  };
  tasks: {
    row: Task;
    insert: TaskInsert;
    update: TaskUpdate;
    key: string;
  };
  tags: {
    row: Tag;
    insert: TagInsert;
    update: TagUpdate;
    key: [workspace_id: string, tag: string];
  };
  seats: {
    row: Seat;
    insert: SeatInsert;
    update: SeatUpdate;
    key: [hall: string, seat: string];
  };
}

/** The declaration, as clients know it, and the stores of the local database. */
export const schema: Schema<Tables> = {
  declaration: {
    schema: 3,
    oldest: 3,
    scopes: { workspace: { roles: { viewer: "read", editor: "write" } } },
    entities: {
      notes: {
        scope: { kind: "user", column: "user_id", type: "text" },
        fields: {
          title: { type: "text", max: 20 },
          body: { type: "text", default: "" },
          count: { type: "integer", nullable: true },
          price: { type: "decimal", nullable: true, precision: 6, scale: 2 },
          done: { type: "boolean", default: false },
          day: { type: "date", nullable: true },
          labels: { type: "map", default: {} },
          extra: { type: "json", nullable: true },
          note_id: { type: "uuid", nullable: true, ref: "notes", on_delete: "restrict" },
        },
        key: { columns: ["id"], types: ["uuid"], per_scope: false },
        index: [["title"]],
        unique: [],
        rules: [],
        display: {},
      },
      tasks: {
        scope: { kind: "workspace", column: "workspace_id", type: "text" },
        fields: {
          title: { type: "text" },
          task_id: { type: "uuid", nullable: true, ref: "tasks", on_delete: "restrict" },
        },
        key: { columns: ["id"], types: ["uuid"], per_scope: false },
        index: [],
        unique: [],
        rules: [],
        display: {},
      },
      tags: {
        scope: { kind: "workspace", column: "workspace_id", type: "text" },
        fields: { color: { type: "text", default: "grey" } },
        key: { columns: ["tag"], types: ["text"], per_scope: true },
        index: [],
        unique: [],
        rules: [],
        display: {},
      },
      seats: {
        scope: { kind: "workspace", column: "workspace_id", type: "text" },
        fields: { taken: { type: "boolean", default: false } },
        key: { columns: ["hall", "seat"], types: ["text", "text"], per_scope: false },
        index: [],
        unique: [],
        rules: [],
        display: {},
      },
    },
  },
  stores: {
    notes: "id, user_id, title, note_id",
    tasks: "id, workspace_id, task_id",
    tags: "[workspace_id+tag], workspace_id",
    seats: "[hall+seat], workspace_id",
  },
};

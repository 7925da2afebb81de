/**
 * What the client keeps beside the rows, in the app's own IndexedDB.
 *
 * The tables of entities hold rows as the app shows them, pending edits on top. A row's state on the server stands in
 * `sync_base` only where the table shows something else, so that most rows are kept once.
 */

import type { Fields } from "../protocol/model.ts";
import type { Pending } from "../protocol/outbox.ts";

export const META = "sync_meta";
export const SCOPE = "sync_scope";
export const BASE = "sync_base";
export const OUTBOX = "sync_outbox";
export const LETTERS = "sync_dead_letter";
export const SHELF = "sync_shelf";

/** Their stores, as Dexie declares them. An absent value is in no index: so most of these are sparse. */
export const STORES: Readonly<Record<string, string>> = {
  [META]: "name",
  [SCOPE]: "scope",
  [BASE]: "name, hidden",
  [OUTBOX]: "++seq, queued, target, [scope+awaits]",
  [LETTERS]: "seq",
  [SHELF]: "++id, user",
};

/** Every write of the app's touches these, too. */
export const TOUCHED = [META, BASE, OUTBOX] as const;

/** Who this replica is, and what its clock has seen. */
export interface ReplicaRecord {
  name: "replica";
  /** Names these contents, so that their loss is noticed. */
  database: string;
  /** Names this replica to the server (SPEC 1). */
  client: string;
  /** Whose rows and outbox these are; null before anybody has signed in. */
  user: string | null;
  /** The highest reading received, or handed to the transport and gone from the outbox since. */
  clock: string | null;
  /** The last reading that was issued to the outbox. */
  issued: string | null;
  /** The server's time less the device's (ms), as last measured. */
  offset: number | null;
  /** The number under which the rows are kept. */
  schema: number;
  /** When the replica last held everything (the device's own ms). */
  synced: number | null;
  /** How many resets there have been: versions heard of before the last one mean nothing any more (SPEC 5). */
  resets: number;
}

/** How far the replica has got in one scope, and what its rows come to. */
export interface ScopeRecord {
  scope: string;
  watermark: string | null;
  to: number;
  highest: number;
  /** The digest's parts (SPEC 5). */
  live: number;
  total: number;
  /** The server's digest at `to`, where it was told one. */
  digest: string | null;
  /** Rows of before a replacement are still shown, until its last page has come. */
  former?: boolean;
}

/** The server's state of one live row. */
export interface BaseRecord {
  /** `scope/entity/row`. */
  name: string;
  version: number;
  /** The document, where the table does not show just this. */
  doc?: Fields;
  /** `entity/row`, where there is a document. */
  hidden?: string;
}

/** One mutation of the outbox. */
export interface OutboxRecord extends Omit<Pending, "awaits"> {
  /** `entity/row`. */
  target: string;
  /** It has no answer yet. */
  queued?: 1;
  /** Applied at this version, shown until the replica has reached it. */
  awaits?: number;
}

/** One mutation that will not be sent again as it is. */
export interface LetterRecord {
  seq: number;
  mutation: Pending;
  code: string;
  message: string;
  field: string | null;
  /** The seq of the dead letter that this one leaned on. */
  cause: number | null;
  /** When it was parked (the device's own ms). */
  parked: number;
}

/** What another user of this device has not sent, or has among the dead letters. */
export interface ShelfRecord {
  id?: number;
  user: string;
  mutation: OutboxRecord | null;
  letter: LetterRecord | null;
}

/** A row as a table holds it: the document and the scope column. */
export type Row = Fields;

export function targetOf(entity: string, row: string): string {
  return `${entity}/${row}`;
}

/** Tidemark's client: ordinary Dexie code that happens to be synchronised. */

export { type ClientCode, TidemarkError } from "./errors.ts";
export type { Member } from "./generated/messages.ts";
export type { Members } from "./protocol/clientRooms.ts";
export { Rejection } from "./protocol/errors.ts";
export type { Declaration, Entity, Field, Fields, Json } from "./protocol/model.ts";
export type { Schema, TableTypes } from "./schema.ts";
export type { Letter, Letters } from "./store/letters.ts";
export type { Outgoing } from "./store/outbox.ts";
export type { Report } from "./sync/peer.ts";
export type { Progress } from "./sync/puller.ts";
export type { Presence, Room, Said } from "./sync/rooms.ts";
export type { JournalEvent } from "./sync/server.ts";
export type { Connection, Observed, Problem, Standing, Status } from "./sync/status.ts";
export type { Surroundings } from "./sync/surroundings.ts";
export type { FetchToken } from "./sync/tokens.ts";
export { type Database, type Options, type SyncedTable, Tidemark, tidemark } from "./tidemark.ts";

/** The database: Dexie's, with tables that are synchronised. */

import { Dexie, type DexieOptions, liveQuery, type PromiseExtended, type Table } from "dexie";

import { askForPush, tagOf } from "./background.ts";
import { TidemarkError } from "./errors.ts";
import { watchPage } from "./page.ts";
import type { Json } from "./protocol/model.ts";
import type { Schema, TableTypes } from "./schema.ts";
import { Capture } from "./store/capture.ts";
import { type Letter, Letters } from "./store/letters.ts";
import { Outbox, type Outgoing, type Waiting } from "./store/outbox.ts";
import { STORES } from "./store/records.ts";
import { Replica } from "./store/replica.ts";
import { Store } from "./store/store.ts";
import { become, identify, reshape } from "./store/users.ts";
import { Engine } from "./sync/engine.ts";
import { problemOf } from "./sync/faults.ts";
import type { Peer, Report } from "./sync/peer.ts";
import { Desk, type Room, Rooms } from "./sync/rooms.ts";
import { type JournalEvent, Server } from "./sync/server.ts";
import { AT_REST, call, type Observed, type Standing, type Status, Watched } from "./sync/status.ts";
import { browser, type Surroundings } from "./sync/surroundings.ts";
import { type Message, Tabs } from "./sync/tabs.ts";
import { type FetchToken, Tokens } from "./sync/tokens.ts";

/** How long the first opening on a device waits to learn whose it is (ms). */
const SIGN_IN_PATIENCE = 10_000;
/** How soon a database that did not open is tried again (ms): the first time, and then. */
const OPEN_SOON = 500;
const OPEN_AGAIN = 10_000;

/** What a database is opened with. */
export interface Options<T> {
  /** Where the service is: `https://sync.example.org`, or `/` for the page's own origin. */
  readonly url: string;
  /** What `tidemark codegen typescript` wrote. */
  readonly schema: Schema<T>;
  /** A JWT of whoever is signed in; null if nobody is. Asked again before one runs out. */
  readonly fetchToken: FetchToken;
  /** Who is signed in, the token's `sub`, where the app knows it: then rows of somebody else are not shown for a moment. */
  readonly user?: string;
  /** Of the IndexedDB database; `tidemark` when left out. */
  readonly name?: string;
  /** Tables of the app's own that stay on the device, as Dexie declares them. */
  readonly local?: Readonly<Record<string, string>>;
  /** The scopes to keep on this device; all that may be read when left out. */
  readonly scopes?: readonly string[];
  /** Whether to synchronise from the start; else `resume()` begins. True when left out. */
  readonly start?: boolean;
  /** Whether to ask the browser to keep the data. True when left out. */
  readonly persist?: boolean;
  /** How long the first opening on a device waits for `fetchToken` to say whose it is (ms); 10,000 when left out. */
  readonly signInPatience?: number;
  /** Told of what should never be: a digest that was wrong, storage that was lost. `console.error` when left out. */
  readonly onReport?: (report: Report) => void;
  /** Parts of the world to replace: time, chance, network, locks, …. */
  readonly around?: Partial<Surroundings>;
  /** Options of Dexie's. */
  readonly dexie?: Omit<DexieOptions, "autoOpen">;
}

/** A table of the declaration: Dexie's, whose `update` takes what may be changed. */
export type SyncedTable<T extends TableTypes> = Omit<Table<T["row"], T["key"], T["insert"]>, "update"> & {
  /** Change a row: what is left out stays as it is. How many rows were changed. */
  update(
    key: T["key"] | T["row"],
    changes: T["update"] | ((row: T["row"], context: { value: T["row"]; primKey: T["key"] }) => void | boolean),
  ): PromiseExtended<number>;
};

/** A database with the tables that `T` names, typed. A table called like a member of `Tidemark` is `db.table(name)`. */
export type Database<T> = Tidemark & {
  readonly [E in Exclude<keyof T, keyof Tidemark>]: T[E] extends TableTypes ? SyncedTable<T[E]> : never;
};

/** Open the database of an app: plain Dexie, and synchronised. */
export function tidemark<T>(options: Options<T>): Database<T> {
  return new Tidemark(options as Options<unknown>) as Database<T>;
}

/** Dexie, and what synchronisation adds to it; `tidemark()` opens one with typed tables. */
export class Tidemark extends Dexie {
  /** Dead letters: what was rejected, with the reason, to be retried, edited, discarded or exported. */
  readonly rejected: Letters;
  readonly #options: Options<unknown>;
  readonly #peer: Peer;
  readonly #capture: Capture;
  readonly #engine: Engine;
  readonly #tabs: Tabs;
  readonly #rooms: Rooms;
  readonly #desk: Desk;
  readonly #status: Watched<Status>;
  #standing: Standing = AT_REST;
  #waiting: Waiting = { pending: 0, since: null, rejected: 0 };
  #stopWatching: (() => void) | null = null;

  constructor(options: Options<unknown>) {
    super(options.name ?? "tidemark", { ...options.dexie, autoOpen: true });
    const { declaration, stores } = options.schema;
    this.#options = options;
    const around = { ...browser(), ...options.around };
    const store = new Store(this, declaration, around);
    const tokens = new Tokens(options.fetchToken, around);
    this.#peer = {
      store,
      replica: new Replica(store),
      outbox: new Outbox(store),
      server: new Server(options.url, tokens, around),
      tokens,
      around,
      scopes: options.scopes ?? null,
      report: (report) => this.#report(report),
    };
    this.#capture = new Capture(store, () => this.#wrote());
    this.rejected = new Letters(store, () => this.split());
    this.#engine = new Engine(this.#peer, {
      standing: (standing) => this.#stands(standing),
      became: (user) => this.#became(user, true),
      room: (event) => this.#desk.pass(event),
      added: (scope) => this.#gather(`${scope}/`),
      outdated: () => this.#tabs.resign(),
    });
    this.#tabs = new Tabs(this.name, around, {
      lead: () => this.#lead(),
      follow: () => this.#follow(),
      heard: (message) => this.#heard(message),
    });
    this.#desk = new Desk(this.#engine, (event, except) => {
      this.#tabs.send({ t: "room", event });
      if (except !== this.#tabs.id) this.#rooms.heard(event);
    });
    this.#rooms = new Rooms(this.#tabs, this.#desk, () => this.#standing.session);
    this.#status = new Watched(this.#statusNow());
    this.use(this.#capture);
    this.version(Math.max(1, declaration.schema)).stores({ ...stores, ...options.local, ...STORES });
    this.on("ready", (vip) => store.whileOpening(vip, () => this.#prepare()), true);
    this.on("close", () => this.#reopen());
    if (options.start !== false) this.resume();
  }

  // ── how it stands ───────────────────────────────────────────────────────────────────────────────────────────────

  /** How synchronisation stands, to be read or watched. */
  get status(): Observed<Status> {
    return this.#status;
  }

  /** What the service has not answered yet, in order. */
  async outgoing(): Promise<Outgoing[]> {
    const pending = await this.#peer.outbox.pending();
    return pending.map(({ seq, op, scope, entity, row, fields, wall }) => ({
      seq,
      op,
      scope,
      entity,
      row,
      fields,
      made: wall,
    }));
  }

  /** Who wrote a row and when, what won and what was overwritten, newest first; asks the service. */
  async history(entity: string, row: string, limit = 100): Promise<JournalEvent[]> {
    return (await this.#peer.server.events({ entity, row, limit: `${limit}` })).events;
  }

  /**
   * Whether the rows on this device are the service's, by scope: the digest computed from all of them, and the one that
   * the service told of the same version, null where it told none (SPEC 5).
   */
  async verify(): Promise<Record<string, { computed: string; told: string | null; version: number }>> {
    const found: Record<string, { computed: string; told: string | null; version: number }> = {};
    for (const { scope, to, digest } of await this.#peer.replica.standings()) {
      found[scope] = { computed: await this.#peer.replica.computed(scope), told: digest, version: to };
    }
    return found;
  }

  /** How much room there is (bytes), where the browser tells. */
  async quota(): Promise<StorageEstimate> {
    return (await this.#peer.around.navigator?.storage?.estimate?.()) ?? {};
  }

  // ── what to do ──────────────────────────────────────────────────────────────────────────────────────────────────

  /** Push and pull now, and tell when that is done; rejects with what stands in the way. Writes need not wait for it. */
  async synchronise(): Promise<void> {
    await this.open();
    await this.#engine.now();
  }

  /** Synchronise, from now on. */
  resume(): void {
    this.#stopWatching ??= this.#watch();
    void this.#begin();
  }

  /** Synchronise no more, until `resume`; writes go on into the outbox. */
  pause(): void {
    this.#stopWatching?.();
    this.#stopWatching = null;
    this.#tabs.resign();
    this.#take(this.#standing);
  }

  /**
   * Somebody has signed in or out: ask `fetchToken` again. Another user's rows replace the former one's; what that one
   * had not sent is kept for when they are back.
   */
  signedIn(): void {
    this.#tabs.send({ t: "signed_in" });
    this.#askAnew();
  }

  /** A token that is held may be a former user's. */
  #askAnew(): void {
    this.#peer.tokens.forget();
    if (this.#tabs.leading) this.#engine.signedIn();
  }

  /**
   * Let the present transaction's writes be sent in as many pushes as they need: they may then take effect in part. To
   * be called first in the transaction.
   */
  split(): void {
    this.#capture.divide();
  }

  /**
   * Be in a room, `workspace:7` or `workspace:7/document:12`, and show `state` there; without one what this tab shows
   * there already. Rejection `malformed` for what names no room, or a state that is no JSON.
   */
  room(name: string, state?: Json): Room {
    return this.#rooms.enter(name, state);
  }

  /** Stop synchronising, and close the database, as Dexie does. */
  override close(options?: { disableAutoOpen: boolean }): void {
    // Dexie closes by itself to open again: for an upgrade, or for a page that is put aside.
    if (options?.disableAutoOpen !== false && this.#tabs) {
      this.pause();
      this.#tabs.close();
    }
    super.close(options);
  }

  /** Delete the database, unsent changes included; nothing of it is missed at the next opening. */
  override delete(options?: { disableAutoOpen: boolean }): PromiseExtended<void> {
    this.#peer.around.storage?.removeItem(this.#marker);
    this.#peer.tokens.forget();
    this.#tabs.send({ t: "signed_in" });
    // Dexie counts its arguments.
    return options === undefined ? super.delete() : super.delete(options);
  }

  /** Under which the storage that outlives the database knows what was in it. */
  get #marker(): string {
    return tagOf(this.name);
  }

  // ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

  async #begin(pause = OPEN_SOON): Promise<void> {
    try {
      await this.open();
      // While it rested somebody else may have signed in, in another tab.
      this.#peer.store.user = (await identify(this.#peer.store)).user;
      this.#refresh();
      if (this.#stopWatching === null) return;
      this.#tabs.open();
      this.#rooms.announce();
    } catch (fault) {
      const problem = problemOf(fault);
      if (problem.code === "schema_mismatch") return this.#take({ ...AT_REST, connection: "needs-upgrade", problem });
      // The browser ends an opening while it clears what the site has stored.
      if (problem.code !== "unavailable" || pause > OPEN_SOON)
        this.#report({ code: "unexpected", message: `the database does not open: ${problem.message}` });
      this.#peer.around.after(pause, () => {
        if (this.#stopWatching === null) return;
        // What was watched has ended with the database.
        this.#stopWatching();
        this.#stopWatching = this.#watch();
        void this.#begin(OPEN_AGAIN);
      });
    }
  }

  async #prepare(): Promise<void> {
    const { storage, navigator } = this.#peer.around;
    const replica = await identify(this.#peer.store);
    const known = storage?.getItem(this.#marker);
    if (known && known !== replica.database) {
      this.#report({
        code: "storage_lost",
        message: "the database was emptied: it is fetched anew",
      });
    }
    try {
      storage?.setItem(this.#marker, replica.database);
    } catch {
      // It is full: should the database be emptied, nobody will say so.
    }
    const { user = replica.user } = this.#options;
    this.#engine.recall(replica);
    if (user === null) await this.#meet();
    else await this.#belong(user);
    await reshape(this.#peer.store);
    if (this.#options.persist !== false && navigator?.storage?.persist) void navigator.storage.persist();
    this.#refresh();
  }

  /** The first time on this device: whose is it? Not for ever: somebody may be looking at a sign-in page. */
  async #meet(): Promise<void> {
    const patience = this.#options.signInPatience ?? SIGN_IN_PATIENCE;
    let forget = () => {};
    const late = new Promise<null>((resolve) => {
      forget = this.#peer.around.after(patience, () => resolve(null));
    });
    // Why there is no token is for the engine to find, and to tell.
    const token = await Promise.race([late, this.#peer.tokens.current().catch(() => null)]);
    forget();
    if (token !== null) await this.#belong(token.user);
  }

  async #belong(user: string): Promise<void> {
    const former = (await identify(this.#peer.store)).user;
    await become(this.#peer.store, user);
    this.#peer.store.user = user;
    if (former !== user) this.#tabs.send({ t: "became", user });
  }

  /** The browser has taken the database away: open it again, and begin anew if it is another one. */
  #reopen(): void {
    // One that did not open is tried again by `#begin`. A page that is put aside has to be without one; Dexie hears of
    // that before us.
    const { event } = this.#peer.around.window ?? {};
    if (this.#stopWatching === null || this.hasFailed() || event?.type === "pagehide") return;
    this.pause();
    // Dexie takes the dead connection for an open one, and whoever notices first would close the new one.
    super.close({ disableAutoOpen: false });
    this.resume();
  }

  // ── this tab and the others ─────────────────────────────────────────────────────────────────────────────────────

  #watch(): () => void {
    const page = watchPage(this.#peer.around, {
      awake: () => this.#start(),
      offline: () => this.#tabs.leading && this.#engine.offline(),
      hidden: () => this.#waiting.pending > 0 && void askForPush(this.#peer.around, this.name),
      gone: () => this.#tabs.close(),
      back: () => {
        // What the others said meanwhile was not heard.
        this.#peer.tokens.forget();
        void this.#begin();
      },
    });
    const counts = liveQuery(() => this.#peer.outbox.waiting()).subscribe({
      next: (waiting) => {
        // Of another tab, perhaps: what is in the database is known to all.
        if (this.#tabs.leading && waiting.pending > this.#waiting.pending) this.#engine.wrote();
        this.#waiting = waiting;
        this.#refresh();
      },
      error: (fault) => {
        const { code, message } = problemOf(fault);
        if (code === "unexpected") this.#report({ code, message });
      },
    });
    return () => {
      page();
      counts.unsubscribe();
    };
  }

  #lead(): void {
    // Since it was got somebody else may have signed in, in a tab that is gone.
    this.#peer.tokens.forget();
    this.#refresh();
    this.#engine.start();
    this.#gather();
  }

  /** Let all tabs ask for the rooms that they are in. */
  #gather(scope = ""): void {
    this.#tabs.send({ t: "rooms?", scope });
    this.#rooms.announce(scope);
  }

  #follow(): void {
    this.#engine.stop();
    this.#desk.clear();
    this.#refresh();
  }

  #start(): void {
    if (!this.isOpen()) void this.#begin();
    else if (this.#tabs.leading) this.#engine.start();
    else this.#tabs.send({ t: "start" });
  }

  #wrote(): void {
    if (this.#tabs.leading) this.#engine.wrote();
    if (this.#standing.connection !== "live") void askForPush(this.#peer.around, this.name);
  }

  #heard(message: Message): void {
    const { leading } = this.#tabs;
    switch (message.t) {
      case "ask":
        if (leading) this.#tabs.send({ t: "standing", standing: this.#engine.standing });
        return;
      case "start":
        if (leading) this.#engine.start();
        return;
      case "signed_in":
        this.#askAnew();
        return;
      case "wish":
        if (leading) this.#desk.take(message.tab, message.wish);
        return;
      case "bye":
        if (leading) this.#desk.gone(message.tab);
        return;
      case "standing":
        if (!leading) this.#take(message.standing);
        return;
      case "became":
        this.#became(message.user, false);
        this.#askAnew();
        return;
      case "room":
        this.#rooms.heard(message.event);
        return;
      case "rooms?":
        this.#rooms.announce(message.scope);
        return;
      default:
        message satisfies never;
    }
  }

  /** How this tab's own engine stands: that is how all stand, if it leads. */
  #stands(standing: Standing): void {
    if (this.#tabs.leading) this.#tabs.send({ t: "standing", standing });
    const { connection, session } = this.#tabs.leading ? standing : this.#standing;
    this.#take({ ...standing, connection, session });
  }

  #take(standing: Standing): void {
    // Where another tab synchronises, this one rests all the same.
    const connection = this.#stopWatching === null ? "paused" : standing.connection;
    if (this.#standing.connection === "live" && connection !== "live") {
      this.#rooms.dim();
    }
    this.#standing = { ...standing, connection };
    this.#refresh();
  }

  #became(user: string, tell: boolean): void {
    this.#peer.store.user = user;
    if (tell) this.#tabs.send({ t: "became", user });
    this.#refresh();
  }

  // ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────

  #statusNow(): Status {
    const { pending, since, rejected } = this.#waiting;
    return {
      ...this.#standing,
      user: this.#peer.store.user,
      pending,
      pendingSince: since,
      rejected,
      inSync: pending === 0 && rejected === 0,
      leader: this.#tabs.leading,
      schema: this.#peer.store.declaration.schema,
    };
  }

  #refresh(): void {
    this.#status.set(this.#statusNow());
  }

  #report(report: Report): void {
    const { onReport } = this.#options;
    if (onReport) call(() => onReport(report));
    else console.error(new TidemarkError(report.code, report.message));
  }
}

export type { Letter };

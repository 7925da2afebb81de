/** A tab of an app: the whole client, on a device, before a scripted service. */

// Before Dexie: its live queries look for an IndexedDB when it is loaded.
import "fake-indexeddb/auto";

import type { Schema } from "../../src/schema.ts";
import type { LetterRecord, OutboxRecord, ReplicaRecord, ScopeRecord } from "../../src/store/records.ts";
import type { Report } from "../../src/sync/peer.ts";
import type { Connection } from "../../src/sync/status.ts";
import type { Surroundings } from "../../src/sync/surroundings.ts";
import { type Database, type Options, tidemark } from "../../src/tidemark.ts";
import { Device, type Life } from "./device.ts";
import { schema, type Tables } from "./schema.ts";
import { Script, type ScriptedSocket, token, URL } from "./script.ts";
import { Service } from "./service.ts";
import { chance, quiet, Time, until } from "./time.ts";

export interface Wishes extends Partial<Omit<Options<Tables>, "url" | "name" | "user">> {
  readonly device?: Device;
  /** Whose token there is; ann's when left out. */
  readonly user?: string | null;
  /** Who is signed in, as the client is told of it. */
  readonly told?: string;
  readonly schema?: Schema<Tables>;
}

/** A service, a clock, and tabs before it. */
export class World {
  readonly time = new Time();
  readonly service = new Service(schema.declaration, this.time);
  readonly script = new Script(this.service);
  readonly #tabs: Tab[] = [];

  /** Open a tab; it synchronises only when it is told to, unless `start` says otherwise. */
  tab(wishes: Wishes = {}): Tab {
    const tab = new Tab(this, wishes.device ?? new Device(), wishes);
    this.#tabs.push(tab);
    return tab;
  }

  /** A tab that synchronises by itself and is connected. */
  async live(wishes: Wishes = {}): Promise<Tab> {
    const count = this.script.sockets.length;
    const tab = this.tab({ start: true, ...wishes });
    const socket = await this.script.connection(count + 1);
    await socket.welcome();
    await tab.stands("live");
    return tab;
  }

  /** Let time go by, and let everything be done that is due in it. */
  async pass(ms: number, step = 500): Promise<void> {
    await quiet();
    for (let at = 0; at < ms; at += step) {
      this.time.pass(step);
      await quiet(4);
    }
    await quiet();
  }

  /** The newest connection. */
  get last(): ScriptedSocket {
    return this.script.sockets.at(-1) as ScriptedSocket;
  }

  /** Let time go by until another connection is there. */
  async another(): Promise<ScriptedSocket> {
    const count = this.script.sockets.length;
    await until(
      () => this.script.sockets.length > count,
      () => this.time.pass(50),
    );
    return this.last;
  }

  end(): void {
    for (const tab of this.#tabs) if (tab.life.alive) tab.db.close();
  }
}

export class Tab {
  readonly db: Database<Tables>;
  readonly device: Device;
  readonly life: Life;
  readonly reports: Report[] = [];
  /** Whose token there is. */
  user: string | null;
  /** How often the app was asked for a token. */
  asked = 0;
  readonly #world: World;

  constructor(world: World, device: Device, { user = "ann", told, device: _, ...options }: Wishes) {
    this.#world = world;
    this.device = device;
    this.life = device.life();
    this.user = user;
    this.db = tidemark<Tables>({
      url: URL,
      schema,
      name: device.name,
      start: false,
      persist: false,
      fetchToken: async () => {
        this.asked += 1;
        return this.user && token(this.user, 4_000_000_000, this.asked);
      },
      onReport: (report) => this.reports.push(report),
      ...(told === undefined ? {} : { user: told }),
      ...options,
      // Whoever does not synchronise by itself is no tab among others.
      around: { ...this.#around(), ...(options.start ? {} : { channel: () => null }), ...options.around },
      dexie: this.life.dexie,
    });
  }

  /** Once the connection stands like this. */
  async stands(connection: Connection): Promise<void> {
    await until(() => this.db.status.value.connection === connection);
  }

  /** Once nothing waits; the clock goes on meanwhile. */
  async settled(): Promise<void> {
    await until(
      async () => (await this.outbox()).length === 0,
      () => this.#world.time.pass(5),
    );
  }

  outbox(): Promise<OutboxRecord[]> {
    return this.db.table<OutboxRecord>("sync_outbox").toArray();
  }

  letters(): Promise<LetterRecord[]> {
    return this.db.table<LetterRecord>("sync_dead_letter").toArray();
  }

  scopes(): Promise<ScopeRecord[]> {
    return this.db.table<ScopeRecord>("sync_scope").toArray();
  }

  async replica(): Promise<ReplicaRecord> {
    return (await this.db.table<ReplicaRecord>("sync_meta").get("replica")) as ReplicaRecord;
  }

  crash(): void {
    this.life.crash();
  }

  #around(): Surroundings {
    const { time, script } = this.#world;
    const { life } = this;
    const never = new Promise<never>(() => undefined);
    const heard = async <T>(answer: Promise<T>): Promise<T> => {
      const came = await answer.then(
        (value) => () => value,
        (fault: unknown) => () => {
          throw fault;
        },
      );
      return life.step() && !life.frozen ? came() : never;
    };
    return {
      ...chance(time),
      fetch: (url, request) => (life.step() && !life.frozen ? heard(script.fetch(url, request)) : never),
      socket: (url, protocol) => script.socket(url, protocol),
      after: (ms, callback) => time.after(ms, () => life.alive && !life.frozen && callback()),
      locks: life.locks,
      channel: life.channel,
      storage: life.device.storage,
      document: null,
      window: null,
      navigator: null,
    };
  }
}

export { liveQuery } from "dexie";

/** One device: a database, Web Locks and channels that its tabs share, in memory. */

import type { DexieOptions } from "dexie";
import { IDBFactory, IDBKeyRange } from "fake-indexeddb";
import type { Channel } from "../../src/sync/surroundings.ts";

let devices = 0;

interface Request {
  readonly grant: () => void;
}

interface Holder {
  /** Take the lock away. */
  readonly lose: () => void;
}

/** Web Locks, exclusive ones alone: `request` with a signal or `steal`. */
class Locks {
  readonly #held = new Map<string, Holder>();
  readonly #queues = new Map<string, Request[]>();

  request(
    name: string,
    { steal = false, signal }: LockOptions,
    callback: () => unknown,
    onHeld: (free: () => void) => void,
  ): Promise<unknown> {
    const queue = this.#queues.get(name) ?? [];
    this.#queues.set(name, queue);
    return new Promise((resolve, reject) => {
      const abort = () => reject(new DOMException("the request was taken back", "AbortError"));
      const holder = { lose: () => reject(new DOMException("the lock was stolen", "AbortError")) };
      const free = () => {
        if (this.#held.get(name) !== holder) return;
        this.#held.delete(name);
        queue.shift()?.grant();
      };
      const request = {
        grant: () => {
          this.#held.set(name, holder);
          onHeld(free);
          queueMicrotask(() => Promise.resolve(callback()).then(resolve, reject).finally(free));
        },
      };
      if (steal) {
        this.#held.get(name)?.lose();
        this.#held.delete(name);
      }
      if (!this.#held.has(name)) request.grant();
      else {
        queue.push(request);
        signal?.addEventListener("abort", () => {
          const at = queue.indexOf(request);
          if (at < 0) return;
          queue.splice(at, 1);
          abort();
        });
      }
    });
  }
}

/** BroadcastChannel: to all others of the name, as a copy, later; one that is closed may say nothing more. */
class Line implements Channel {
  onmessage: Channel["onmessage"] = null;
  readonly #others: Set<Line>;

  constructor(others: Set<Line>) {
    this.#others = others;
    others.add(this);
  }

  postMessage(data: unknown): void {
    if (!this.#others.has(this)) throw new DOMException("the channel is closed", "InvalidStateError");
    for (const line of this.#others) {
      if (line === this) continue;
      const copy = structuredClone(data);
      setImmediate(() => {
        if (this.#others.has(line)) line.onmessage?.call(line as never, { data: copy } as MessageEvent);
      });
    }
  }

  close(): void {
    this.#others.delete(this);
  }
}

export class Device {
  /** Dexie shares what it knows of a database among all of its name. */
  readonly name = `device-${++devices}`;
  readonly databases = new IDBFactory();
  readonly storage: Pick<Storage, "getItem" | "setItem" | "removeItem">;
  readonly #locks = new Locks();
  readonly #lines = new Set<Line>();

  constructor() {
    const kept = new Map<string, string>();
    this.storage = {
      getItem: (key) => kept.get(key) ?? null,
      setItem: (key, value) => void kept.set(key, value),
      removeItem: (key) => void kept.delete(key),
    };
  }

  life(): Life {
    return new Life(this, this.#locks, () => new Line(this.#lines));
  }
}

/** One tab's hold on its device, which ends when the tab does: in an orderly way or all at once. */
export class Life {
  readonly device: Device;
  readonly locks: LockManager;
  readonly dexie: DexieOptions;
  /** How often the tab has begun something that a crash may cut off: a transaction, a request, its answer. */
  steps = 0;
  /** The step at which the tab crashes. */
  fatal = Number.POSITIVE_INFINITY;
  alive = true;
  /** Asleep: alive, holding on to what it holds, and hearing nothing. */
  frozen = false;
  readonly #line: () => Line;
  readonly #lines: Line[] = [];
  readonly #freeing = new Set<() => void>();
  readonly #open = new Set<IDBDatabase>();
  readonly #running = new Set<IDBTransaction>();

  constructor(device: Device, locks: Locks, line: () => Line) {
    this.device = device;
    this.#line = line;
    const request = (name: string, options: LockOptions, callback: () => unknown) =>
      locks.request(name, options, callback, (free) => this.#freeing.add(free));
    this.locks = { request } as unknown as LockManager;
    this.dexie = { indexedDB: this.#watched(device.databases), IDBKeyRange };
  }

  channel = (): Channel => {
    const line = this.#line();
    this.#lines.push(line);
    const { frozen } = { frozen: () => this.frozen };
    return {
      get onmessage() {
        return line.onmessage;
      },
      set onmessage(listener: Channel["onmessage"]) {
        line.onmessage = listener && ((event) => frozen() || listener.call(line as never, event));
      },
      postMessage: (data) => void (this.alive && !this.frozen && line.postMessage(data)),
      close: () => line.close(),
    };
  };

  /** Something begins that a crash may cut off; false: it never does. */
  step(): boolean {
    if (this.alive && ++this.steps >= this.fatal) this.crash();
    return this.alive;
  }

  /** Gone without a word: transactions are aborted, locks freed, nothing is said or done any more. */
  crash(): void {
    this.alive = false;
    for (const running of this.#running) {
      try {
        running.abort();
      } catch {
        // It has just ended by itself.
      }
    }
    for (const database of this.#open) database.close();
    for (const line of this.#lines) line.close();
    for (const free of this.#freeing) free();
  }

  #watched(factory: IDBFactory): IDBFactory {
    return {
      open: (name: string, version?: number) => {
        const opening = factory.open(name, version);
        opening.addEventListener("success", () => this.#count(opening.result));
        return opening;
      },
      deleteDatabase: (name: string) => factory.deleteDatabase(name),
      databases: () => factory.databases(),
      cmp: (one: unknown, two: unknown) => factory.cmp(one, two),
    };
  }

  #count(database: IDBDatabase): void {
    this.#open.add(database);
    const begin = database.transaction.bind(database);
    database.transaction = (...asked) => {
      if (!this.alive) throw new DOMException("the tab is gone", "InvalidStateError");
      const begun = begin(...asked);
      this.#running.add(begun);
      const ended = () => this.#running.delete(begun);
      begun.addEventListener("complete", ended);
      begun.addEventListener("abort", ended);
      this.step();
      return begun;
    };
  }
}

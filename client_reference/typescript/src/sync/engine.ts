/**
 * Synchronisation, in the one tab that does it: `protocol/stream.ts` decides, this carries out.
 *
 * Two lanes: down come frames and pulls, one after the other, so that no answer is older than the one before it; up go
 * pushes (`Sender`), one at a time. What goes wrong on one lane does not hold up the other.
 */

import { outdated, TidemarkError } from "../errors.ts";
import { CLOSE_UNAUTHENTICATED } from "../generated/codes.ts";
import type { ServerFrame } from "../generated/messages.ts";
import type { Gathered, Heard } from "../protocol/clientRooms.ts";
import type { Json } from "../protocol/model.ts";
import { ClientStream, type Effect, type Refused as FrameRefused } from "../protocol/stream.ts";
import type { ReplicaRecord } from "../store/records.ts";
import { become } from "../store/users.ts";
import { NeedsAuth, problemOf, Refused, Temporary, Upgrade } from "./faults.ts";
import { Lane, type Peer } from "./peer.ts";
import { Poller } from "./poller.ts";
import { Puller } from "./puller.ts";
import { Pusher } from "./pusher.ts";
import { Sender } from "./sender.ts";
import { AT_REST, type Standing } from "./status.ts";
import type { Token } from "./tokens.ts";
import { Wire } from "./wire.ts";

/** So many connections in a row that never came to a welcome, while requests got through: no websocket is to be had. */
const HOPELESS = 2;
/** How long (ms) the clock is trusted to go on as it does: then it is looked at again. */
const GLANCE = 60_000;

/** How soon (ms) a service that does not serve this app's schema number is asked again. */
const RISEN = 60_000;

/** What the rest of the client hears. */
export interface Hearing {
  standing(standing: Standing): void;
  /** Somebody else has signed in: the tables hold that user's rows now. */
  became(user: string): void;
  room(event: Gathered | Heard | FrameRefused): void;
  /** Another scope may be read: its rooms may be entered. */
  added(scope: string): void;
  /** This app is older than what the tables hold: another tab runs a newer one. */
  outdated(): void;
}

export class Engine {
  readonly #peer: Peer;
  readonly #hearing: Hearing;
  readonly #puller: Puller;
  readonly #pusher: Pusher;
  readonly #sender: Sender;
  readonly #poller: Poller;
  readonly #down = new Lane();
  #client = "";
  #stream: ClientStream;
  #wire: Wire | null = null;
  #standing: Standing = AT_REST;
  #running = false;
  /** The attempt to connect that counts; an older one has been overtaken. */
  #turn = 0;
  #preparing = false;
  /** Pulled since the last hello: what the stream still brings answers an older request. */
  #pulled = false;
  #unwelcome = 0;
  #disarm: () => void = () => undefined;

  constructor(peer: Peer, hearing: Hearing) {
    this.#peer = peer;
    this.#hearing = hearing;
    this.#puller = new Puller(peer, (firstSync) => this.#tell({ firstSync }));
    this.#pusher = new Pusher(peer);
    this.#sender = new Sender(peer, this.#pusher, (fault) => this.#pushed(fault));
    this.#poller = new Poller(peer, this.#puller, this.#down);
    this.#stream = this.#fresh();
  }

  get standing(): Standing {
    return this.#standing;
  }

  // ── from outside ────────────────────────────────────────────────────────────────────────────────────────────────

  /** What is known from the last time. */
  recall({ synced, offset }: ReplicaRecord): void {
    this.#tell({ lastSync: synced, offset });
  }

  /** Begin, or begin anew at once: the network is back, somebody looks, somebody has signed in. */
  start(): void {
    this.#running = true;
    this.#sender.start();
    this.#poller.wake();
    if (this.#stream.state === "stopped") this.#stream.stop();
    if (this.#stream.state === "live" || this.#preparing) {
      this.#do(this.#stream.elapsed(this.#now(), this.#peer.around.random()));
      return;
    }
    if (this.#standing.connection !== "needs-upgrade")
      this.#tell({ connection: this.#isOffline() ? "offline" : this.#poller.active ? "polling" : "connecting" });
    this.#do(this.#stream.start(this.#now()));
  }

  stop(): void {
    this.#rest();
    this.#tell({ connection: "paused", firstSync: null });
  }

  /** The browser says that there is no network: what is open is dead, or soon will be. */
  offline(): void {
    this.#overtake();
    this.#peer.server.giveUp();
    this.#drop();
    if (this.#running) this.#failed(new Temporary("there is no network"));
    this.#tell({ connection: "offline" });
  }

  /** There is something in the outbox: send it soon. */
  wrote(): void {
    this.#sender.wrote();
  }

  /** Push and pull once, whatever state the connection is in; rejects with what stands in the way. */
  async now(again = true): Promise<void> {
    const turn = this.#turn;
    try {
      await this.#down.run(() => this.#prepare(true));
      await this.#sender.now();
      await this.#down.run(() => this.#pull());
      this.#tell({ problem: null });
    } catch (fault) {
      // Begun anew meanwhile: what went wrong is of the attempt before.
      if (again && turn !== this.#turn) return this.now(false);
      this.#note(fault);
      throw fault;
    } finally {
      // As somebody else, perhaps.
      if (this.#running && this.#stream.state === "resting") this.start();
    }
  }

  /** The app's user may be another one now: ask for a token, and begin anew with it. */
  signedIn(): void {
    this.#rest();
    this.#peer.tokens.forget();
    this.start();
  }

  join(room: string, state: Json): void {
    this.#do(this.#stream.join(room, state));
  }

  leave(room: string): void {
    this.#do(this.#stream.leave(room));
  }

  show(room: string, state: Json): void {
    this.#do(this.#stream.show(room, state));
  }

  broadcast(room: string, event: string, payload: Json): void {
    this.#do(this.#stream.broadcast(room, event, payload));
  }

  // ── the connection ──────────────────────────────────────────────────────────────────────────────────────────────

  #do(effects: readonly Effect[]): void {
    let clock: string | null = null;
    for (const effect of effects) {
      if (effect.kind === "observe") clock = effect.clock;
      else {
        this.#carryOut(effect, clock);
        if (effect.kind === "applyRun") clock = null;
      }
    }
    if (clock !== null) {
      const seen = clock;
      this.#bring(() => this.#peer.store.write([], (inside) => inside.observe(seen)));
    }
    this.#arm();
  }

  #carryOut(effect: Exclude<Effect, { kind: "observe" }>, clock: string | null): void {
    const client = this.#client;
    switch (effect.kind) {
      case "connect":
        this.#stream.stop();
        void this.#connect();
        return;
      case "send":
        this.#wire?.send(effect.frame);
        return;
      case "hang":
        this.#drop();
        this.#tellConnecting();
        return;
      case "renewToken":
        void this.#renew();
        return;
      case "applyRun":
        this.#bring(async () => {
          const asked = effect.asked && !this.#pulled;
          if (await this.#puller.take(effect.run, { asked, client, clock })) await this.#pull();
          else this.#tell({ lastSync: this.#now() });
        });
        return;
      case "pullScope":
        this.#bring(() => this.#pull());
        return;
      case "revoke":
        this.#bring(() => this.#peer.replica.revoke(effect.scope, client));
        return;
      case "gathered":
      case "heard":
        this.#hearing.room(effect);
        return;
      case "refused":
        if (effect.room !== null) this.#hearing.room(effect);
        return;
      case "added":
        // Its rows follow as changes.
        this.#hearing.added(effect.scope);
        return;
      case "stop":
        this.#stopped(effect.why, effect.reason);
        return;
      default:
        effect satisfies never;
    }
  }

  /** Catch up over HTTP, so that the stream has little to bring; then open it. */
  async #connect(): Promise<void> {
    if (this.#preparing || !this.#running) return;
    const turn = this.#overtake();
    this.#preparing = true;
    this.#disarm();
    try {
      const token = await this.#down.run(() => this.#prepare(!this.#poller.active, turn));
      if (turn !== this.#turn) return;
      this.#preparing = false;
      // After the pull: so an edit that lost shows its winner, and not what was there before.
      this.#sender.wrote();
      this.#stream.start(this.#now());
      if (this.#stream.state === "connecting") this.#open(token);
      this.#arm();
    } catch (fault) {
      if (turn !== this.#turn) return;
      // Before what follows: while preparing, no alarm is set for the next attempt.
      this.#preparing = false;
      this.#failed(fault);
    }
  }

  #open(token: Token): void {
    const { server, around, replica } = this.#peer;
    const wire: Wire = new Wire(server.socketUrl, around, {
      opened: () =>
        this.#bring(async () => {
          const watermark = await replica.watermark();
          if (this.#wire !== wire) return;
          this.#pulled = false;
          this.#do(this.#stream.connected(token.text, this.#endOf(token), watermark, this.#now()));
        }),
      received: (frame) => this.#received(frame),
      closed: (code, reason) => this.#lost(code, reason, token),
    });
    this.#wire = wire;
  }

  #received(frame: ServerFrame): void {
    if (frame.t === "welcome") {
      this.#unwelcome = 0;
      this.#poller.end();
      this.#tell({ connection: "live", problem: null, session: frame.session });
      this.#sender.start();
    }
    try {
      this.#do(this.#stream.received(frame, this.#now()));
    } catch (fault) {
      // A frame that is not what its kind says.
      this.#drop();
      this.#failed(fault);
    }
  }

  #lost(code: number | null, reason: string, token: Token): void {
    this.#drop();
    if (code === CLOSE_UNAUTHENTICATED) this.#peer.tokens.spoil(token);
    this.#tellConnecting();
    this.#do(this.#stream.closed(code, reason, this.#now(), this.#peer.around.random()));
  }

  /** Let go of the connection; after too many that never came to a welcome, poll. */
  #drop(): void {
    if (this.#wire === null) return;
    this.#wire.drop();
    this.#wire = null;
    if (this.#stream.state === "live" || this.#isOffline()) return;
    this.#unwelcome += 1;
    if (this.#unwelcome >= HOPELESS && this.#running) {
      // Not only once the first poll is answered, which may be held for long: requests do get through.
      this.#tell({ connection: "polling" });
      this.#poller.begin((fault) => this.#polled(fault));
    }
  }

  #polled(fault: unknown): void {
    if (fault === null) this.#tell({ connection: "polling", problem: null, lastSync: this.#now() });
    else if (isFinal(fault)) this.#failed(fault);
    else this.#note(fault);
  }

  /** What has to be done before connecting; a token that is good. `pull`: catch up, too. */
  async #prepare(pull: boolean, turn = this.#turn): Promise<Token> {
    const { tokens, store } = this.#peer;
    const token = await tokens.current();
    if (turn !== this.#turn) throw new Temporary("begun anew");
    const held = await store.read([], (inside) => inside.replica());
    if (held.schema > store.declaration.schema) throw outdated();
    if (token.user !== store.user || token.user !== held.user) await this.#become(token.user);
    await this.#pusher.measure();
    const replica = await store.read([], (inside) => inside.replica());
    if (this.#stream.state !== "live") this.#rename(replica.client);
    tokens.offset = replica.offset ?? 0;
    this.recall(replica);
    if (pull) await this.#pull();
    return token;
  }

  /** What the former user's connection still brings is not for these tables. */
  async #become(user: string): Promise<void> {
    this.#drop();
    this.#stream.stop();
    await become(this.#peer.store, user);
    this.#peer.store.user = user;
    this.#hearing.became(user);
  }

  async #pull(): Promise<void> {
    await this.#puller.pull();
    this.#pulled = true;
    this.#tell({ lastSync: this.#now() });
  }

  async #renew(): Promise<void> {
    const turn = this.#turn;
    try {
      const token = await this.#peer.tokens.renew();
      if (turn !== this.#turn) return;
      if (token.user !== this.#peer.store.user) this.signedIn();
      else this.#do(this.#stream.renewed(token.text, this.#endOf(token), this.#now()));
    } catch (fault) {
      if (turn !== this.#turn) return;
      // The stream ends when the old one runs out: to connect again a fresh one is asked for.
      this.#note(fault);
    }
  }

  /** A task of the lane down; a failure is that of the connection. */
  #bring(task: () => Promise<void>): void {
    const turn = this.#turn;
    const current = async () => (turn === this.#turn ? task() : undefined);
    this.#down.run(current).catch((fault) => {
      if (turn !== this.#turn || !this.#running) return;
      this.#drop();
      this.#failed(fault);
    });
  }

  /** The attempt, or the connection, has come to nothing. */
  #failed(fault: unknown): void {
    if (isFinal(fault)) {
      this.#stopped(fault instanceof Refused ? "forbidden" : "upgrade", (fault as Error).message);
      if (!(fault instanceof Upgrade || fault instanceof Refused)) this.#hearing.outdated();
      return;
    }
    this.#note(fault);
    if (this.#stream.state === "resting") this.#stream.start(this.#now());
    this.#do(this.#stream.closed(null, "", this.#now(), this.#peer.around.random()));
    // That nothing can be had does not mean that nothing can be given.
    this.#sender.wrote();
  }

  #pushed(fault: unknown): void {
    if (fault === null) {
      // What went wrong before is over, unless the connection is still to be had.
      if (this.#standing.problem && this.#works()) this.#tell({ problem: null });
    } else if (isFinal(fault)) this.#failed(fault);
    else this.#note(fault);
  }

  #stopped(why: "upgrade" | "forbidden" | "fault", message: string): void {
    this.#rest();
    const code = why === "upgrade" ? "schema_mismatch" : why;
    this.#tell({ connection: why === "upgrade" ? "needs-upgrade" : "refused", problem: { code, message } });
    // The service may be the one that has not risen yet.
    const turn = this.#turn;
    if (why === "upgrade") this.#peer.around.after(RISEN, () => turn === this.#turn && this.start());
  }

  #rest(): void {
    this.#running = false;
    this.#overtake();
    // What is still under way may be a former user's.
    this.#peer.server.giveUp();
    this.#sender.stop();
    this.#poller.end();
    this.#drop();
    this.#do(this.#stream.stop());
  }

  /** From now on another attempt counts: what is under way of the former one ends in nothing. */
  #overtake(): number {
    this.#preparing = false;
    this.#turn += 1;
    return this.#turn;
  }

  #arm(): void {
    this.#disarm();
    const { deadline } = this.#stream;
    if (deadline === null || this.#preparing) return;
    const { around } = this.#peer;
    this.#disarm = around.after(Math.min(GLANCE, Math.max(0, deadline - this.#now())), () =>
      this.#do(this.#stream.elapsed(this.#now(), around.random())),
    );
  }

  // ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

  #fresh(): ClientStream {
    return new ClientStream(this.#client, this.#peer.store.declaration.schema, this.#peer.scopes);
  }

  /** A replica that belongs to somebody else now has another name; the app is in the same rooms as before. */
  #rename(client: string): void {
    if (this.#client === client) return;
    this.#client = client;
    const { rooms } = this.#stream;
    this.#stream = this.#fresh();
    for (const [room, state] of rooms) this.#stream.join(room, state);
  }

  /** When a token runs out (Unix seconds), by this device's clock, which may be wrong. */
  #endOf({ expires }: Token): number {
    return expires - (this.#standing.offset ?? 0) / 1_000;
  }

  #now(): number {
    return this.#peer.around.now();
  }

  #isOffline(): boolean {
    return this.#peer.around.navigator?.onLine === false;
  }

  #tellConnecting(): void {
    if (!this.#running || this.#standing.connection !== "live") return;
    this.#tell({ connection: this.#isOffline() ? "offline" : "connecting" });
  }

  /** Say what went wrong, and what it makes of the connection. */
  #note(fault: unknown): void {
    const problem = problemOf(fault);
    if (problem.code === "unexpected") this.#peer.report({ code: "unexpected", message: problem.message });
    if (fault instanceof NeedsAuth && this.#stream.state !== "live") this.#tell({ connection: "needs-auth", problem });
    else if (this.#works() || !this.#running) this.#tell({ problem });
    else this.#tell({ connection: this.#isOffline() ? "offline" : "connecting", problem });
  }

  #works(): boolean {
    return this.#standing.connection === "live" || this.#standing.connection === "polling";
  }

  #tell(changed: Partial<Standing>): void {
    this.#standing = { ...this.#standing, ...changed };
    this.#hearing.standing(this.#standing);
  }
}

/** Whether trying again changes nothing. */
function isFinal(fault: unknown): boolean {
  return fault instanceof Refused || (fault instanceof TidemarkError && fault.code === "schema_mismatch");
}

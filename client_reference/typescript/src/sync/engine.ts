/**
 * Synchronisation, in the one tab that does it (architecture: `protocol/stream.ts` decides, this carries out).
 *
 * Two lanes: down come frames and pulls, one after the other, so that no answer is older than the one before it; up go
 * pushes, one at a time. What goes wrong on one lane does not hold up the other.
 */

import type { ServerFrame } from "../generated/messages.ts";
import type { Gathered, Heard } from "../protocol/clientRooms.ts";
import { ClientStream, type Effect, type Refused as FrameRefused } from "../protocol/stream.ts";
import { become } from "../store/users.ts";
import { NeedsAuth, Refused, Temporary, Upgrade } from "./faults.ts";
import { Lane, type Peer } from "./peer.ts";
import { Puller } from "./puller.ts";
import { Pusher } from "./pusher.ts";
import { AT_REST, type Connection, type Problem, type Standing } from "./status.ts";
import type { Token } from "./tokens.ts";
import { Wire } from "./wire.ts";

/** How long a write waits for company before it is sent (ms). */
const DEBOUNCE = 5;
/** So many connections in a row that never came to a welcome, while requests got through: no websocket is to be had. */
const HOPELESS = 2;
/** How soon a fresh token is asked for again (ms). */
const RENEW_AGAIN = 10_000;
const FIRST_DELAY = 500;
const LONGEST_DELAY = 60_000;

/** What the rest of the client hears. */
export interface Hearing {
  standing(standing: Standing): void;
  /** Somebody else has signed in: the tables hold that user's rows now. */
  became(user: string): void;
  room(event: Gathered | Heard | FrameRefused): void;
}

export class Engine {
  readonly #peer: Peer;
  readonly #hearing: Hearing;
  readonly #puller: Puller;
  readonly #pusher: Pusher;
  readonly #down = new Lane();
  readonly #up = new Lane();
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
  #polling: AbortController | null = null;
  #failures = 0;
  #disarm: () => void = () => undefined;
  #unschedule: (() => void) | null = null;
  #scheduledAt = 0;

  constructor(peer: Peer, hearing: Hearing) {
    this.#peer = peer;
    this.#hearing = hearing;
    this.#puller = new Puller(peer, (firstSync) => this.#tell({ firstSync }));
    this.#pusher = new Pusher(peer, () => this.#puller.resets);
    this.#stream = this.#fresh("");
  }

  get standing(): Standing {
    return this.#standing;
  }

  // ── from outside ────────────────────────────────────────────────────────────────────────────────────────────────

  /** Begin, or begin anew at once: the network is back, somebody looks, somebody has signed in. */
  start(): void {
    this.#running = true;
    this.#failures = 0;
    if (this.#stream.state === "live" || this.#preparing) {
      this.#do(this.#stream.elapsed(this.#now(), this.#peer.around.random()));
      this.wrote(0);
      return;
    }
    if (this.#stream.state === "stopped") this.#stream.stop();
    this.#tell({ connection: this.#isOffline() ? "offline" : this.#polling ? "polling" : "connecting" });
    this.#do(this.#stream.start(this.#now()));
  }

  /** The browser says that there is no network: what is open is dead, or soon will be. */
  offline(): void {
    this.#wire?.drop();
    this.#wire = null;
    this.#do(this.#stream.closed(null, "", this.#now(), this.#peer.around.random()));
    this.#tell({ connection: "offline" });
  }

  stop(): void {
    this.#running = false;
    this.#turn += 1;
    this.#preparing = false;
    this.#unschedule?.();
    this.#unschedule = null;
    this.#endPolling();
    this.#do(this.#stream.stop());
    this.#tell({ connection: "paused", firstSync: null });
  }

  /** There is something in the outbox: send it soon. */
  wrote(delay = DEBOUNCE): void {
    if (!this.#running) return;
    const at = this.#now() + delay;
    if (this.#unschedule !== null) {
      if (this.#scheduledAt <= at) return;
      this.#unschedule();
    }
    this.#scheduledAt = at;
    this.#unschedule = this.#peer.around.after(delay, () => {
      this.#unschedule = null;
      void this.#pushQuietly();
    });
  }

  /** Push and pull once, whatever state the connection is in; rejects with what stands in the way. */
  async now(): Promise<void> {
    try {
      await this.#down.run(() => this.#prepare(true));
      await this.#push();
      await this.#down.run(() => this.#pull());
    } catch (fault) {
      this.#note(fault);
      throw fault;
    }
  }

  /** The app's user may be another one now: ask for a token, and begin anew with it. */
  signedIn(): void {
    this.stop();
    this.#peer.tokens.forget();
    this.start();
  }

  join(room: string, state: Parameters<ClientStream["join"]>[1]): void {
    this.#do(this.#stream.join(room, state));
  }

  leave(room: string): void {
    this.#do(this.#stream.leave(room));
  }

  show(room: string, state: Parameters<ClientStream["show"]>[1]): void {
    this.#do(this.#stream.show(room, state));
  }

  broadcast(room: string, event: string, payload: Parameters<ClientStream["broadcast"]>[2]): void {
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
    switch (effect.kind) {
      case "connect":
        this.#stream.stop();
        void this.#connect();
        return;
      case "send":
        this.#wire?.send(effect.frame);
        return;
      case "hang":
        this.#wire?.drop();
        this.#wire = null;
        this.#tellConnecting();
        return;
      case "renewToken":
        void this.#renew();
        return;
      case "applyRun": {
        const client = this.#client;
        this.#bring(async () => {
          const { replica, report } = this.#peer;
          const asked = effect.asked && !this.#pulled;
          const { mustPull, faulty, reset } = await replica.apply(effect.run, { asked, client, clock });
          if (reset) this.#puller.resets += 1;
          if (faulty) report({ code: "digest", message: `the digest of ${effect.run.scope} is not the service's` });
          if (mustPull || faulty) await this.#pull();
          else this.#tell({ lastSync: this.#now() });
        });
        return;
      }
      case "pullScope":
        this.#bring(() => this.#pull());
        return;
      case "revoke":
        this.#bring(() => this.#puller.revoke(effect.scope));
        return;
      case "gathered":
      case "heard":
        this.#hearing.room(effect);
        return;
      case "refused":
        if (effect.room !== null) this.#hearing.room(effect);
        return;
      case "added":
      case "verdicts":
        // Its rows follow as changes; pushes go over HTTP.
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
    this.#turn += 1;
    const turn = this.#turn;
    this.#preparing = true;
    this.#disarm();
    let token: Token;
    try {
      token = await this.#down.run(() => this.#prepare(this.#polling === null));
    } catch (fault) {
      if (turn === this.#turn) this.#failed(fault);
      return;
    } finally {
      if (turn === this.#turn) this.#preparing = false;
    }
    if (turn !== this.#turn) return;
    this.wrote(0);
    this.#stream.start(this.#now());
    if (this.#stream.state === "connecting") this.#open(token);
    this.#arm();
  }

  #open(token: Token): void {
    const { server, around, replica } = this.#peer;
    const wire = new Wire(server.socketUrl, around, {
      opened: () =>
        this.#bring(async () => {
          const watermark = await replica.watermark();
          if (this.#wire !== wire) return;
          this.#pulled = false;
          this.#do(this.#stream.connected(token.text, token.expires, watermark, this.#now()));
        }),
      received: (frame) => this.#received(frame),
      closed: (code, reason) => {
        this.#wire = null;
        this.#lost(code, reason, token);
      },
    });
    this.#wire = wire;
  }

  #received(frame: ServerFrame): void {
    if (frame.t === "welcome") {
      this.#unwelcome = 0;
      this.#failures = 0;
      this.#endPolling();
      this.#tell({ connection: "live", problem: null, lastSync: this.#now() });
      this.wrote(0);
    }
    this.#do(this.#stream.received(frame, this.#now()));
  }

  #lost(code: number | null, reason: string, token: Token): void {
    if (this.#stream.state !== "live") this.#unwelcome += 1;
    if (code === 4401) this.#peer.tokens.spoil(token);
    this.#tellConnecting();
    this.#do(this.#stream.closed(code, reason, this.#now(), this.#peer.around.random()));
    if (this.#unwelcome >= HOPELESS && this.#stream.state === "waiting") this.#beginPolling();
  }

  /** What has to be done before connecting; a token that is good. `pull`: catch up, too. */
  async #prepare(pull: boolean): Promise<Token> {
    const { tokens, store } = this.#peer;
    const token = await tokens.current();
    if (token.user !== store.user) await this.#become(token.user);
    await this.#pusher.measure();
    const { client, offset, synced } = await store.read([], (inside) => inside.replica());
    if (this.#stream.state !== "live") this.#renameStream(client);
    this.#tell({ offset, lastSync: synced });
    if (pull) await this.#pull();
    return token;
  }

  /** What the former user's connection still brings is not for these tables. */
  async #become(user: string): Promise<void> {
    this.#do(this.#stream.stop());
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
    try {
      const token = await this.#peer.tokens.renew();
      if (token.user !== this.#peer.store.user) this.signedIn();
      else this.#do(this.#stream.renewed(token.text, token.expires, this.#now()));
    } catch (fault) {
      this.#note(fault);
      // The stream ends when the old one runs out; until then there is time to try again.
      const turn = this.#turn;
      this.#peer.around.after(RENEW_AGAIN, () => turn === this.#turn && this.#stream.state === "live" && this.#renew());
    }
  }

  /** A task of the lane down; a failure is that of the connection. */
  #bring(task: () => Promise<void>): void {
    const turn = this.#turn;
    const current = async () => (turn === this.#turn ? task() : undefined);
    this.#down.run(current).catch((fault) => {
      if (turn !== this.#turn || !this.#running) return;
      this.#wire?.drop();
      this.#wire = null;
      this.#failed(fault);
    });
  }

  /** The attempt, or the connection, has come to nothing. */
  #failed(fault: unknown): void {
    this.#note(fault);
    if (fault instanceof Upgrade || fault instanceof Refused) {
      this.#stopped(fault instanceof Upgrade ? "upgrade" : "forbidden", fault.message);
      return;
    }
    if (this.#stream.state === "resting") this.#stream.start(this.#now());
    this.#do(this.#stream.closed(null, "", this.#now(), this.#peer.around.random()));
  }

  #stopped(why: "upgrade" | "forbidden" | "fault", message: string): void {
    this.#running = false;
    this.#turn += 1;
    this.#endPolling();
    this.#do(this.#stream.stop());
    const code = why === "upgrade" ? "schema_mismatch" : why;
    this.#tell({ connection: why === "upgrade" ? "needs-upgrade" : "refused", problem: { code, message } });
  }

  #arm(): void {
    this.#disarm();
    const { deadline } = this.#stream;
    if (deadline === null || this.#preparing) return;
    const { around } = this.#peer;
    this.#disarm = around.after(Math.max(0, deadline - this.#now()), () =>
      this.#do(this.#stream.elapsed(this.#now(), around.random())),
    );
  }

  // ── pushing ─────────────────────────────────────────────────────────────────────────────────────────────────────

  #push(): Promise<void> {
    return this.#up.run(() => this.#pusher.push());
  }

  async #pushQuietly(): Promise<void> {
    const turn = this.#turn;
    try {
      // Without a user that is known to be the present one nothing is sent.
      const { user } = await this.#peer.tokens.current();
      if (user !== this.#peer.store.user) return;
      await this.#push();
      this.#failures = 0;
    } catch (fault) {
      if (!this.#running || turn !== this.#turn) return;
      this.#note(fault);
      if (fault instanceof Upgrade || fault instanceof Refused) this.#failed(fault);
      else this.wrote(this.#delay(fault));
    }
  }

  /** Half a delay and up to as much again by chance, doubled with every failure; no shorter than the service asks. */
  #delay(fault: unknown): number {
    const asked = fault instanceof Temporary ? (fault.retryAfter ?? 0) : 0;
    const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    return Math.max(asked, delay * (0.5 + this.#peer.around.random() / 2));
  }

  // ── polling ─────────────────────────────────────────────────────────────────────────────────────────────────────

  #beginPolling(): void {
    if (this.#polling !== null || !this.#running) return;
    const ending = new AbortController();
    this.#polling = ending;
    this.#tell({ connection: "polling" });
    void this.#poll(ending.signal);
  }

  async #poll(signal: AbortSignal): Promise<void> {
    let failures = 0;
    while (!signal.aborted) {
      try {
        await this.#puller.poll(signal);
        failures = 0;
        if (!signal.aborted) this.#tell({ connection: "polling", problem: null, lastSync: this.#now() });
      } catch (fault) {
        if (signal.aborted) return;
        this.#note(fault);
        if (fault instanceof Upgrade || fault instanceof Refused) return this.#failed(fault);
        failures = Math.min(failures + 1, 7);
        await this.#pause(FIRST_DELAY * 2 ** failures * (0.5 + this.#peer.around.random() / 2), signal);
      }
    }
  }

  #pause(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const forget = this.#peer.around.after(ms, resolve);
      signal.addEventListener("abort", () => {
        forget();
        resolve();
      });
    });
  }

  #endPolling(): void {
    this.#polling?.abort();
    this.#polling = null;
  }

  // ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

  #fresh(client: string): ClientStream {
    return new ClientStream(client, this.#peer.store.declaration.schema, this.#peer.scopes);
  }

  /** A replica that belongs to somebody else now has another name; the app is in the same rooms as before. */
  #renameStream(client: string): void {
    if (this.#client === client) return;
    this.#client = client;
    const { rooms } = this.#stream;
    this.#stream = this.#fresh(client);
    for (const [room, state] of rooms) this.#stream.join(room, state);
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
    else if (this.#standing.connection === "live" || this.#standing.connection === "polling") this.#tell({ problem });
    else this.#tell({ connection: this.#isOffline() ? "offline" : "connecting", problem });
  }

  #tell(changed: Partial<Standing> & { connection?: Connection }): void {
    const before = this.#standing;
    this.#standing = { ...before, ...changed };
    this.#hearing.standing(this.#standing);
  }
}

function problemOf(fault: unknown): Problem {
  const message = fault instanceof Error ? fault.message : String(fault);
  if (fault instanceof Temporary) return { code: "unavailable", message };
  if (fault instanceof NeedsAuth) return { code: "needs_auth", message };
  if (fault instanceof Upgrade) return { code: "schema_mismatch", message };
  if (fault instanceof Refused) return { code: fault.code, message };
  const name = fault instanceof Error ? fault.name : "";
  return { code: name === "QuotaExceededError" ? "quota" : "unexpected", message: `${name}: ${message}` };
}

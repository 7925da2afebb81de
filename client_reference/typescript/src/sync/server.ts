/** The service over HTTP: one method for each request, one place where refusals get their meaning (SPEC 4, 5, 7). */

import { REQUEST_REMEDIES, type RequestCode } from "../generated/codes.ts";
import type { PullRequest, PullResponse, PushResponse, Run, Trailer } from "../generated/messages.ts";
import { isReading } from "../protocol/clock.ts";
import type { Fields } from "../protocol/model.ts";
import { type Pending, wire } from "../protocol/outbox.ts";
import { NeedsAuth, Refused, Temporary, TooMuch, Upgrade } from "./faults.ts";
import type { Surroundings } from "./surroundings.ts";
import type { Token, Tokens } from "./tokens.ts";

/** How long the service may be silent (ms); a long poll answers after 25 s at the latest. */
const PATIENCE = 45_000;
/** Bytes that even a slow line takes up in a millisecond. */
const SLOWEST = 4;

/** An answer whose body is still coming; `touch` says that it does, `done` that nobody waits for more. */
interface Reply {
  readonly response: Response;
  touch(): void;
  done(): void;
}

/** The server's time: `offset` from this device's, known to within `error`; all in ms. */
export interface Time {
  readonly clock: string;
  readonly offset: number;
  readonly error: number;
  readonly now: number;
}

/** Which replica asks, and for whom (SPEC 1). */
export interface Who {
  readonly client: string;
  readonly user: string | null;
}

/** What is asked for: of a row's history, of a page of the journal. */
export type Query = Record<string, string>;

/** One event of the journal (SPEC 7): a write's fate, who made it and when, what it overwrote, what won over it. */
export interface JournalEvent {
  readonly id: string;
  readonly time: string;
  readonly scope: string;
  readonly outcome: "applied" | "superseded" | "rejected" | "member";
  readonly op: string | null;
  readonly entity: string | null;
  readonly row: string | null;
  readonly at: string | null;
  readonly user: string | null;
  readonly client: string | null;
  readonly set: readonly string[] | null;
  readonly overwrote: Fields | null;
  readonly values: Fields | null;
  readonly won: Readonly<Record<string, string>> | null;
  readonly reason: string | null;
  readonly error: { readonly code: string; readonly message: string; readonly field: string | null } | null;
  readonly by: string | null;
}

export class Server {
  readonly #base: string;
  readonly #tokens: Tokens;
  readonly #around: Surroundings;
  /** Requests that have no whole answer yet. */
  readonly #open = new Set<AbortController>();

  constructor(url: string, tokens: Tokens, around: Surroundings) {
    this.#base = url.endsWith("/") ? url : `${url}/`;
    this.#tokens = tokens;
    this.#around = around;
  }

  /** Where the stream is. */
  get socketUrl(): string {
    const origin = this.#around.document?.baseURI;
    const url = new URL(`${this.#base}sync/stream`, origin);
    url.protocol = url.protocol.replace("http", "ws");
    return url.href;
  }

  /** There is no network any more: what is under way comes to nothing now, and not after a time. */
  giveUp(): void {
    for (const ending of this.#open) ending.abort();
  }

  /** `GET /sync/time`, and what it says about this device's clock. */
  async time(): Promise<Time> {
    const sent = this.#around.now();
    const answer = await json<{ clock: string; time: string }>(await this.#fetch("sync/time", {}));
    const received = this.#around.now();
    const now = Date.parse(answer.time);
    if (!isReading(answer.clock) || Number.isNaN(now)) throw stranger();
    return {
      clock: answer.clock,
      offset: now - Math.floor((sent + received) / 2),
      error: Math.ceil((received - sent) / 2),
      now,
    };
  }

  /** Send mutations of one schema number, as the user whose they are. */
  async push(who: Who, batch: readonly Pending[]): Promise<PushResponse> {
    const body = { client: who.client, schema: batch[0]?.schema, mutations: batch.map(wire) };
    const answer = await json<PushResponse>(await this.#post("sync/push", body, who));
    if (!Array.isArray(answer.results) || !isReading(answer.clock)) throw stranger();
    return answer;
  }

  /** One page, waited for up to `request.wait` seconds. */
  async poll(who: Who, request: PullRequest, signal: AbortSignal): Promise<PullResponse> {
    const answer = await json<PullResponse>(await this.#post("sync/pull", request, who, { signal }));
    if (!Array.isArray(answer.scopes) || !isReading(answer.clock)) throw stranger();
    return answer;
  }

  /** Runs as they come, and the trailer last; Temporary where the answer is cut off before it. */
  async *pull(who: Who, request: PullRequest): AsyncGenerator<Run | Trailer> {
    const reply = await this.#post("sync/pull", request, who, { accept: "application/x-ndjson" });
    for await (const line of lines(reply)) {
      const item = parse<Run | Trailer>(line);
      yield item;
      if ("readable" in item) return;
    }
    throw new Temporary("the answer was cut off; what had come is kept");
  }

  /** A page of the journal (SPEC 7). */
  async events(query: Query): Promise<{ events: JournalEvent[]; next: string | null }> {
    return json(await this.#authorized(`sync/events?${new URLSearchParams(query)}`, {}, null));
  }

  #post(path: string, body: unknown, who: Who, more: { accept?: string; signal?: AbortSignal } = {}): Promise<Reply> {
    const headers: Record<string, string> = { "Content-Type": "application/json" };
    if (more.accept) headers.Accept = more.accept;
    return this.#authorized(path, { method: "POST", body: JSON.stringify(body), headers }, who.user, more.signal);
  }

  /**
   * With a token of `user` (null: of whoever it is), and with a fresh one, once, where the service does not take it.
   * What belongs to one user is never sent as another.
   */
  async #authorized(path: string, request: RequestInit, user: string | null, signal?: AbortSignal): Promise<Reply> {
    const token = await this.#tokens.current();
    const mine = ({ user: whose }: Token) => user === null || whose === user;
    if (!mine(token)) {
      this.#tokens.spoil(token);
      throw new NeedsAuth("somebody else has signed in");
    }
    try {
      return await this.#fetch(path, authorized(request, token), signal);
    } catch (fault) {
      if (!(fault instanceof NeedsAuth)) throw fault;
      this.#tokens.spoil(token);
      const fresh = await this.#tokens.renew();
      if (fresh.text === token.text || !mine(fresh)) throw fault;
      return this.#fetch(path, authorized(request, fresh), signal);
    }
  }

  async #fetch(path: string, request: RequestInit, signal?: AbortSignal): Promise<Reply> {
    const ending = new AbortController();
    const end = () => ending.abort();
    signal?.addEventListener("abort", end);
    const size = typeof request.body === "string" ? request.body.length : 0;
    let forget = this.#around.after(PATIENCE + size / SLOWEST, end);
    this.#open.add(ending);
    const done = () => {
      forget();
      this.#open.delete(ending);
      signal?.removeEventListener("abort", end);
    };
    const touch = () => {
      forget();
      forget = this.#around.after(PATIENCE, end);
    };
    try {
      const options: RequestInit = { credentials: "same-origin", cache: "no-store", ...request, signal: ending.signal };
      const response = await this.#around.fetch(this.#base + path, options);
      if (!response.ok) throw await meaning(response);
      return { response, touch, done };
    } catch (fault) {
      done();
      throw fault instanceof TypeError || (fault as Error).name === "AbortError" ? away(fault as Error) : fault;
    }
  }
}

function authorized(request: RequestInit, token: Token): RequestInit {
  return { ...request, headers: { ...request.headers, Authorization: `Bearer ${token.text}` } };
}

/** Lines end with a newline and nothing else: JSON text may hold other characters that look like line ends. */
async function* lines({ response, touch, done }: Reply): AsyncGenerator<string> {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const part = await reader.read();
      touch();
      if (part.done) break;
      const parts = (rest + part.value).split("\n");
      rest = parts.pop() ?? "";
      yield* parts.filter((line) => line !== "");
    }
  } catch (fault) {
    throw away(fault as Error);
  } finally {
    done();
    // Whoever stops listening early lets the rest go; a body that broke has nothing left to let go.
    await reader.cancel().catch(() => undefined);
  }
  if (rest !== "") yield rest;
}

async function json<T>({ response, done }: Reply): Promise<T> {
  let text: string;
  try {
    text = await response.text();
  } catch (fault) {
    throw away(fault as Error);
  } finally {
    done();
  }
  return parse<T>(text);
}

function parse<T>(text: string): T {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value as T;
  } catch {
    // Said below, as of JSON that is no answer.
  }
  throw stranger();
}

function away(fault: Error): Temporary {
  return new Temporary(`the service cannot be reached (${fault.message})`);
}

function stranger(status = 200): Temporary {
  return new Temporary(`what answered (${status}) is not the service`);
}

/** What a refused request means. */
async function meaning(response: Response): Promise<Error> {
  const { status } = response;
  const problem = await problemOf(response);
  const tooMuch = status === 400 || status === 413;
  if (problem === null) {
    return tooMuch
      ? new TooMuch(String(status), `something on the way refused the request (${status})`, false)
      : stranger(status);
  }
  const { code, detail } = problem;
  if (tooMuch) return new TooMuch(code, detail, true);
  switch (REQUEST_REMEDIES[code as RequestCode]) {
    case "authenticate":
      return new NeedsAuth(detail);
    case "upgrade":
      return new Upgrade(detail);
    case "give_up":
      return new Refused(code, detail);
    default:
      return new Temporary(detail, retryAfter(response));
  }
}

/** The service's own refusal (RFC 9457), or null if something else answered. */
async function problemOf(response: Response): Promise<{ code: string; detail: string } | null> {
  if (response.headers.get("Content-Type")?.split(";")[0] !== "application/problem+json") return null;
  try {
    const { code, detail, title }: Record<string, unknown> = JSON.parse(await response.text());
    return typeof code === "string" ? { code, detail: String(detail ?? title ?? code) } : null;
  } catch {
    return null;
  }
}

function retryAfter(response: Response): number | null {
  const seconds = response.headers.get("Retry-After") ?? "";
  return /^\d{1,6}$/.test(seconds) ? Number(seconds) * 1_000 : null;
}

/** A service that says what a test wants it to say: answers given in advance, else what the service in memory says. */

import { Buffer } from "node:buffer";
import type { ClientFrame, Mutation, PullRequest, PushRequest, ServerFrame } from "../../src/generated/messages.ts";
import { instantOfMillis } from "../../src/protocol/clock.ts";
import type { Socket } from "../../src/sync/surroundings.ts";
import type { Service } from "./service.ts";
import { until } from "./time.ts";

export const URL = "http://service.test";

/** A token as the service would sign it; who has it is `user`. */
export function token(user: string, expires = 4_000_000_000, id = 0): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "HS256" })}.${part({ sub: user, exp: expires, jti: id })}.signed`;
}

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly token: string;
  readonly user: string;
  readonly accept: string;
  readonly body: Record<string, unknown>;
  readonly signal: AbortSignal | null;
}

/** An answer to one request: a Response, or a promise of one; what it throws the network does. */
export type Answer = (asked: Asked) => Response | Promise<Response>;

export class Script {
  readonly service: Service;
  readonly requests: Asked[] = [];
  readonly sockets: ScriptedSocket[] = [];
  /** What the next requests for these paths are answered; what is not listed the service in memory answers. */
  readonly answers: { time: Answer[]; push: Answer[]; pull: Answer[] } = { time: [], push: [], pull: [] };
  /** Whether there is a network. */
  online = true;

  constructor(service: Service) {
    this.service = service;
  }

  get pushes(): PushRequest[] {
    return this.to("/sync/push").map(({ body }) => body as unknown as PushRequest);
  }

  get pulls(): PullRequest[] {
    return this.to("/sync/pull").map(({ body }) => body as unknown as PullRequest);
  }

  /** All mutations that were sent, in order. */
  get sent(): Mutation[] {
    return this.pushes.flatMap(({ mutations }) => mutations);
  }

  to(path: string): Asked[] {
    return this.requests.filter((asked) => asked.path === path);
  }

  fetch = async (url: string, request: RequestInit): Promise<Response> => {
    const { pathname } = new globalThis.URL(url);
    const headers = new Headers(request.headers);
    const bearer = (headers.get("Authorization") ?? "").replace("Bearer ", "");
    const asked: Asked = {
      method: request.method ?? "GET",
      path: pathname,
      token: bearer,
      user: bearer ? userOf(bearer) : "",
      accept: headers.get("Accept") ?? "",
      body: request.body ? JSON.parse(String(request.body)) : {},
      signal: request.signal ?? null,
    };
    this.requests.push(asked);
    if (!this.online) throw new TypeError("fetch failed");
    const kind = pathname.slice("/sync/".length) as keyof Script["answers"];
    const answer = this.answers[kind]?.shift();
    const ended = new Promise<never>((_, reject) => {
      request.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    });
    return Promise.race([Promise.resolve(asked).then(answer ?? this.model), ended]);
  };

  socket = (url: string, protocol: string): Socket => {
    const made = new ScriptedSocket(url, protocol, this.service);
    this.sockets.push(made);
    return made as unknown as Socket;
  };

  /** The socket that was made as the `count`th, once it is there. */
  async connection(count = this.sockets.length + 1): Promise<ScriptedSocket> {
    await until(() => this.sockets.length >= count);
    return this.sockets[count - 1] as ScriptedSocket;
  }

  /** What the service in memory answers. */
  model = (asked: Asked): Response | Promise<Response> => {
    const { service } = this;
    switch (asked.path) {
      case "/sync/time":
        return json({ clock: service.clock(), time: instantOfMillis(service.now) });
      case "/sync/push":
        return json(service.push(asked.user, asked.body as unknown as PushRequest));
      case "/sync/pull":
        return this.#pull(asked);
      default:
        throw new Error(`nobody should ask for ${asked.path}`);
    }
  };

  #pull(asked: Asked): Response | Promise<Response> {
    const request = asked.body as unknown as PullRequest;
    const { runs, trailer } = this.service.pull(asked.user, request);
    if (asked.accept === "application/x-ndjson") return ndjson([...runs, trailer]);
    const page = runs.filter(({ from }, at) => at === 0 || from === 0);
    if (page.length > 0 || !request.wait || asked.signal?.aborted)
      return json({ scopes: page, more: page.length < runs.length, ...trailer });
    // Held until something is new.
    const { service } = this;
    const news = () => service.pull(asked.user, request).runs.length > 0 || asked.signal?.aborted === true;
    return until(news).then(() => this.#pull(asked));
  }
}

/** One websocket, whose other end the test has. */
export class ScriptedSocket {
  readonly url: string;
  readonly protocol: string;
  readonly sent: ClientFrame[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number | null; reason: string }) => void) | null = null;
  closed = false;
  readonly #service: Service;

  constructor(url: string, protocol: string, service: Service) {
    this.url = url;
    this.protocol = protocol;
    this.#service = service;
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(): void {
    this.closed = true;
  }

  /** Let it open, and wait for the hello. */
  async open(): Promise<ClientFrame & { t: "hello" }> {
    this.onopen?.();
    await until(() => this.sent.length > 0);
    return this.sent[0] as ClientFrame & { t: "hello" };
  }

  say(frame: ServerFrame | string): void {
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }

  end(code: number | null, reason = ""): void {
    this.closed = true;
    this.onclose?.({ code, reason });
  }

  /** Open, greet, and bring what is missing, as the service in memory would. */
  async welcome(heartbeat = 25): Promise<ClientFrame & { t: "hello" }> {
    const hello = await this.open();
    const user = userOf(hello.token);
    const { runs, trailer } = this.#service.pull(user, { ...hello, limit: 5_000 });
    const { readable, revoked, clock } = trailer;
    const scopes = Object.fromEntries(readable.map((scope) => [scope, this.#service.head(scope)]));
    this.say({ t: "welcome", session: "s", user, scopes, revoked, clock, heartbeat });
    for (const run of runs) this.say({ t: "changes", ...run, clock });
    return hello;
  }

  /** Bring what happened in a scope above `from`. */
  bring(user: string, scope: string, from: number): void {
    const watermark = { [scope]: `${this.#service.epoch}.${from}.0.3` };
    const { runs, trailer } = this.#service.pull(user, { schema: 3, watermark, scopes: [scope], limit: 5_000 });
    for (const run of runs) this.say({ t: "changes", ...run, clock: trailer.clock });
  }
}

function userOf(text: string): string {
  return JSON.parse(Buffer.from(text.split(".")[1] ?? "", "base64url").toString()).sub;
}

// ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

export function json(body: unknown, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { headers: { "Content-Type": "application/json", ...headers } });
}

export function ndjson(lines: readonly unknown[]): Response {
  const text = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  return new Response(text, { headers: { "Content-Type": "application/x-ndjson" } });
}

/** The service's own refusal of a request (RFC 9457). */
export function problem(status: number, code: string, headers: Record<string, string> = {}): Answer {
  const body = JSON.stringify({ type: "about:blank", title: "no", status, detail: `it is ${code}`, code });
  const kind = { "Content-Type": "application/problem+json", ...headers };
  return () => new Response(body, { status, headers: kind });
}

/** What a proxy on the way says. */
export function page(status: number): Answer {
  const headers = { "Content-Type": "text/html" };
  return () => new Response("<h1>Bad gateway</h1>", { status, headers });
}

/** The request goes through, and its answer is lost. */
export function lost(script: Script): Answer {
  return async (asked) => {
    await script.model(asked);
    throw new TypeError("the connection was reset");
  };
}

/** An answer that comes when the test lets it. */
export function held(answer: Answer): { answer: Answer; release: () => void; asked: Promise<Asked> } {
  let release: () => void = () => undefined;
  let tell: (asked: Asked) => void = () => undefined;
  const free = new Promise<void>((resolve) => {
    release = resolve;
  });
  const asked = new Promise<Asked>((resolve) => {
    tell = resolve;
  });
  const wait: Answer = async (request) => {
    tell(request);
    await free;
    return answer(request);
  };
  return { answer: wait, release, asked };
}

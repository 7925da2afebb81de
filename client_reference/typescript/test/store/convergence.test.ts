/** Random histories of one replica: whatever is lost, repeated or overtaken, it ends with the server's rows. */

import fc from "fast-check";
import { expect, test } from "vitest";
import type { PushResponse, Run } from "../../src/generated/messages.ts";
import type { Fields } from "../../src/protocol/model.ts";
import type { Pending } from "../../src/protocol/outbox.ts";
import { id, Local } from "../support/local.ts";
import { schema } from "../support/schema.ts";
import { refused, Service } from "../support/service.ts";
import { Time } from "../support/time.ts";

const SCOPES = ["user:ann", "workspace:a", "workspace:b"];
const WORKSPACES = ["a", "b"];

type Step =
  | { do: "put" | "patch" | "delete"; row: number; value: number }
  | { do: "group"; value: number }
  | { do: "task"; row: number; workspace: number; value: number }
  | { do: "theirs"; op: "put" | "patch" | "delete"; row: number; value: number }
  | { do: "move"; row: number; to: number; value: number }
  | { do: "pull" | "hand over" | "push" | "settle" | "lose" | "reopen" | "pass" | "catch up" | "renumber" | "overtake" }
  | { do: "deliver"; which: number };

/** A reset comes before the answer to a push that was sent before it. */
const OVERTAKEN: readonly Step[] = [
  { do: "catch up" },
  { do: "hand over" },
  { do: "push" },
  { do: "renumber" },
  { do: "catch up" },
  { do: "settle" },
];

const small = fc.nat({ max: 2 });
const value = fc.nat({ max: 5 });
const steps = fc.array(
  fc.oneof(
    fc.record({ do: fc.constantFrom("put" as const, "patch" as const, "delete" as const), row: small, value }),
    fc.record({ do: fc.constant("group" as const), value }),
    fc.record({ do: fc.constant("task" as const), row: small, workspace: fc.nat({ max: 1 }), value }),
    fc.record({
      do: fc.constant("theirs" as const),
      op: fc.constantFrom("put" as const, "patch" as const, "delete" as const),
      row: small,
      value,
    }),
    fc.record({ do: fc.constant("move" as const), row: small, to: fc.nat({ max: 1 }), value }),
    fc.record({
      do: fc.constantFrom(
        ...([
          "pull",
          "pull",
          "hand over",
          "push",
          "push",
          "settle",
          "lose",
          "reopen",
          "pass",
          "renumber",
          "overtake",
        ] as const),
      ),
    }),
    fc.record({ do: fc.constant("deliver" as const), which: fc.nat() }),
  ),
  { minLength: 5, maxLength: 60 },
);

/** A run, and in the answer to which pull it comes. */
interface Asked {
  readonly run: Run;
  readonly pull: number;
}

/** One replica and a service, with everything that is under way between them. */
class History {
  readonly time = new Time();
  readonly service = new Service(schema.declaration, this.time);
  local: Local;
  renewals = 0;
  /** Runs that were asked for or streamed: any of them may come at any time, and again. */
  runs: Asked[] = [];
  pulls = 0;
  sending: Pending[] = [];
  who = { client: "", resets: 0 };
  answer: PushResponse | null = null;
  /** The mutations that were written, and those that the service has given a final verdict. */
  readonly written = new Set<number>();
  readonly judged = new Set<number>();

  private constructor(local: Local) {
    this.local = local;
    this.service.members = { ann: SCOPES.slice(1) };
    this.service.judge = ({ fields }) => (fields?.title === "bad" ? refused("rule") : null);
  }

  static async begin(): Promise<History> {
    const history = new History(await Local.open());
    return history;
  }

  async take(step: Step): Promise<void> {
    const { local, service } = this;
    switch (step.do) {
      case "put":
        await local.notes.put({ id: id(step.row), title: title(step.value), count: step.value });
        break;
      case "patch":
        await local.notes.update(id(step.row), {
          body: `${step.value}`,
          labels: { [`k${step.value % 2}`]: step.value },
        });
        break;
      case "delete":
        await local.notes.delete(id(step.row));
        break;
      case "group":
        await local.db.transaction("rw", local.notes, async () => {
          await local.notes.put({ id: id(0), title: title(step.value) });
          await local.notes.put({ id: id(1), title: "group", note_id: id(0) });
        });
        break;
      case "task": {
        const task = { id: id(step.row), workspace_id: WORKSPACES[step.workspace] ?? "a", title: title(step.value) };
        // It may be in the other one: that the app has to find out by itself.
        await local.tasks.put(task).catch((fault: { code: string }) => expect(fault.code).toBe("scope_change"));
        break;
      }
      case "theirs": {
        const known = service.rows("user:ann").has(`notes/${id(step.row)}`);
        const fields: Fields = step.op === "put" ? { title: "theirs", labels: {} } : { count: step.value };
        if (known || step.op === "put")
          service.write("user:ann", step.op, "notes", id(step.row), step.op === "delete" ? {} : fields);
        break;
      }
      case "move":
        for (const scope of SCOPES.slice(1)) {
          if (service.rows(scope).has(`tasks/${id(step.row)}`)) service.write(scope, "delete", "tasks", id(step.row));
        }
        service.write(SCOPES[1 + step.to] ?? "", "put", "tasks", id(step.row), { title: "moved" });
        break;
      case "pull":
        this.runs.push(...this.#ask());
        break;
      case "deliver":
        if (this.runs.length > 0) await this.#apply(this.runs[step.which % this.runs.length] as Asked);
        break;
      case "hand over":
        if (this.sending.length === 0) await this.#handOver();
        break;
      case "push":
        if (this.sending.length > 0) this.#push();
        break;
      case "settle":
        await this.#settle();
        break;
      case "lose":
        this.#lose();
        break;
      case "reopen":
        this.#lose();
        local.close();
        this.local = await Local.open({ device: local.device, time: this.time });
        break;
      case "pass":
        this.time.pass(1_000);
        break;
      case "renumber":
        // Where nothing was pulled yet, nobody is told of a reset.
        if (Object.keys(this.#watermark).length < SCOPES.length) break;
        this.renewals += 1;
        service.renumber(`epoch${this.renewals}`);
        // The stream has ended, and a pull is asked only when none is under way. An answer to a push may still come.
        this.runs = [];
        break;
      case "overtake":
        for (const next of OVERTAKEN) await this.take(next);
        break;
      case "catch up":
        await this.#catchUp();
        break;
      default:
        step satisfies never;
    }
    for (const { seq } of await this.local.records()) this.written.add(seq);
  }

  /** Everything gets through at last. */
  async settleAll(): Promise<void> {
    this.#lose();
    let rounds = 0;
    do {
      rounds += 1;
      expect(rounds).toBeLessThan(50);
      await this.#handOver();
      if (this.sending.length > 0) this.#push();
      await this.#settle();
      await this.#catchUp();
    } while ((await this.local.records()).length > 0);
  }

  async #handOver(): Promise<void> {
    const { sending, who } = await this.local.outbox.handOver(1_000);
    this.sending = sending;
    this.who = who;
  }

  #push(): void {
    this.answer = this.service.push("ann", { mutations: this.sending.map(({ handed: _, ...sent }) => sent) });
    for (const { seq, status } of this.answer.results) if (status !== "retry") this.judged.add(seq);
  }

  async #settle(): Promise<void> {
    if (this.answer === null) return;
    await this.local.outbox.settle(this.sending, this.answer, this.who, null);
    this.#lose();
  }

  #lose(): void {
    this.sending = [];
    this.answer = null;
  }

  #watermark: Record<string, string> = {};

  #ask(): Asked[] {
    this.pulls += 1;
    const { runs } = this.service.pull("ann", { schema: 3, watermark: this.#watermark, limit: 2 });
    return runs.map((run) => ({ run, pull: this.pulls }));
  }

  async #catchUp(): Promise<void> {
    this.#watermark = await this.local.replica.watermark();
    this.runs.push(...this.#ask());
    while (this.runs.length > 0) await this.#apply(this.runs.shift() as Asked);
  }

  async #apply({ run, pull }: Asked): Promise<void> {
    const { client, resets } = await this.local.meta();
    const applied = await this.local.replica.apply(run, { asked: pull === this.pulls, client });
    expect(applied.faulty).toBe(false);
    this.#watermark = await this.local.replica.watermark();
    // What was asked for before a reset is dropped, and a reset comes once.
    if ((await this.local.meta()).resets > resets)
      this.runs = this.runs.filter((waiting) => waiting.pull >= pull && waiting.run !== run);
  }
}

function title(value: number): string {
  return value === 0 ? "bad" : `t${value}`;
}

async function table(local: Local, name: string): Promise<[string, unknown][]> {
  const rows = await local.db.table<Record<string, unknown>>(name).toArray();
  return rows.map(({ user_id: _, workspace_id: __, ...row }) => [`${name}/${row.id}`, row]);
}

test("whatever is lost, repeated or overtaken, the tables end as the server's rows, and no write is lost (I25, I34, I36)", async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (given) => {
      const history = await History.begin();
      for (const step of given) await history.take(step);
      await history.settleAll();
      const { local, service } = history;
      const shown = [...(await table(local, "notes")), ...(await table(local, "tasks"))].sort();
      const rows = SCOPES.flatMap((scope) => [...service.rows(scope)]).sort();
      expect(shown).toEqual(rows);
      for (const scope of SCOPES) {
        const { computed, kept } = await local.verify(scope);
        expect(computed).toBe(service.digest(scope));
        expect(kept).toBe(computed);
      }
      const parked = (await local.parked()).map(({ seq }) => seq);
      const lost = [...history.written].filter((seq) => !history.judged.has(seq) && !parked.includes(seq));
      expect(lost).toEqual([]);
      expect(Math.max(0, ...service.effects.values())).toBeLessThanOrEqual(1);
      expect((await local.bases()).filter(({ doc }) => doc !== undefined)).toEqual([]);
      local.close();
    }),
    { numRuns: 150 },
  );
}, 120_000);

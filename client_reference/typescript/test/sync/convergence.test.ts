/** Random days of a tab: requests fail in every way, sockets come and go, others write, the tab is gone and back. */

import fc from "fast-check";
import { expect, test } from "vitest";
import { id } from "../support/local.ts";
import { type Answer, lost, page, problem } from "../support/script.ts";
import { later, refused } from "../support/service.ts";
import { type Tab, World } from "../support/tab.ts";
import { quiet, until } from "../support/time.ts";

const ANN = "user:ann";

type Step =
  | { do: "put" | "patch" | "delete" | "theirs"; row: number; value: number }
  | { do: "answer"; as: "lost" | "503" | "502" | "401" | "200" | "pull 502" | "retry" }
  | { do: "frames" | "welcome" | "close" | "silence" | "pause" | "resume" | "crash" | "close tab" }
  | { do: "pass"; ms: number };

const row = fc.nat({ max: 2 });
const value = fc.nat({ max: 5 });
const steps = fc.array(
  fc.oneof(
    fc.record({ do: fc.constantFrom("put", "patch", "delete", "theirs"), row, value }),
    fc.record({
      do: fc.constant("answer" as const),
      as: fc.constantFrom("lost", "503", "502", "401", "200", "pull 502", "retry"),
    }),
    fc.record({
      do: fc.constantFrom(
        ...([
          "frames",
          "frames",
          "welcome",
          "welcome",
          "close",
          "silence",
          "pause",
          "resume",
          "crash",
          "close tab",
        ] as const),
      ),
    }),
    fc.record({ do: fc.constant("pass" as const), ms: fc.constantFrom(5, 5, 600, 5_000) }),
  ) as fc.Arbitrary<Step>,
  { minLength: 5, maxLength: 30 },
);

class Day {
  readonly world = new World();
  tab: Tab;
  /** How often the service still puts a mutation off. */
  #later = 0;

  constructor() {
    this.world.service.judge = ({ fields }) => {
      if (this.#later > 0) {
        this.#later -= 1;
        return later("unavailable");
      }
      return fields?.title === "bad" ? refused("rule") : null;
    };
    this.tab = this.world.tab({ start: true });
  }

  async take(step: Step): Promise<void> {
    const { world, tab } = this;
    const { db } = tab;
    const socket = world.script.sockets.at(-1);
    switch (step.do) {
      case "put":
        await db.notes.put({ id: id(step.row), title: step.value === 0 ? "bad" : `t${step.value}` });
        break;
      case "patch":
        await db.notes.update(id(step.row), { body: `${step.value}` });
        break;
      case "delete":
        await db.notes.delete(id(step.row));
        break;
      case "theirs":
        world.service.write(ANN, step.value === 0 ? "delete" : "put", "notes", id(step.row), {
          title: "theirs",
          labels: {},
        });
        break;
      case "answer":
        this.#answer(step.as);
        break;
      case "welcome":
        if (socket && !socket.closed && socket.sent.length === 0 && socket.onopen) {
          await Promise.race([socket.welcome(), quiet(200)]).catch(() => undefined);
        }
        break;
      case "frames":
        socket?.bring("ann", ANN, Math.max(0, world.service.head(ANN) - 2));
        break;
      case "close":
        if (socket && !socket.closed) socket.end(1012);
        break;
      case "silence":
        world.time.pass(60_000);
        break;
      case "pause":
        db.pause();
        break;
      case "resume":
        db.resume();
        break;
      case "pass":
        world.time.pass(step.ms);
        break;
      case "crash":
      case "close tab":
        if (step.do === "crash") tab.crash();
        else db.close();
        this.tab = world.tab({ device: tab.device, start: true });
        await this.tab.db.open();
        break;
      default:
        step satisfies never;
    }
    await quiet(3);
  }

  /** Nothing stands in the way any more. */
  async end(): Promise<void> {
    const { script } = this.world;
    this.#later = 0;
    script.answers.push.length = 0;
    script.answers.pull.length = 0;
    const { db } = this.tab;
    db.resume();
    await until(
      () => db.status.value.leader,
      () => this.world.time.pass(5),
    );
    await db.synchronise();
    await db.synchronise();
  }

  #answer(as: (Step & { do: "answer" })["as"]): void {
    const { push, pull } = this.world.script.answers;
    const answers: Record<typeof as, () => void> = {
      lost: () => push.push(lost(this.world.script)),
      "503": () => push.push(problem(503, "unavailable", { "Retry-After": "1" })),
      "502": () => push.push(page(502)),
      "401": () => push.push(problem(401, "token_expired")),
      "200": () => push.push(page(200)),
      "pull 502": () => pull.push(page(502) as Answer),
      retry: () => {
        this.#later += 1;
      },
    };
    answers[as]();
  }
}

test("however a day goes, it ends with an empty outbox, the server's rows and its digest, and each write took effect once at most (I25, I32, I34)", async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (given) => {
      const day = new Day();
      await day.tab.db.open();
      for (const step of given) await day.take(step);
      await day.end();
      const { tab, world } = day;
      expect(await tab.outbox()).toEqual([]);
      const shown = (await tab.db.notes.toArray()).map(({ user_id: _, ...note }) => [`notes/${note.id}`, note]);
      expect(shown.sort()).toEqual([...world.service.rows(ANN)].sort());
      expect(await tab.db.verify()).toMatchObject({ [ANN]: { computed: world.service.digest(ANN) } });
      expect(tab.reports).toEqual([]);
      expect(Math.max(0, ...world.service.effects.values())).toBeLessThanOrEqual(1);
      world.end();
    }),
    { numRuns: 40 },
  );
}, 120_000);

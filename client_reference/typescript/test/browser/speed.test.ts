import Dexie, { liveQuery } from "dexie";
import { expect, test } from "vitest";
import { device, somebody, until } from "./devices.ts";

const sorted = (times: number[]) => [...times].sort((one, two) => one - two);
const p50 = (times: number[]) => sorted(times)[times.length >> 1] ?? Number.NaN;

async function timed(times: number, work: (at: number) => Promise<unknown>): Promise<number[]> {
  const taken: number[] = [];
  for (let at = 0; at < times; at++) {
    const begun = performance.now();
    await work(at);
    taken.push(performance.now() - begun);
  }
  return taken;
}

const row = (at: number) => ({ name: `Category ${at}`, color: "blue", position: at, archived: false });

test("a local write costs less than twice a plain one", async () => {
  const results: Record<string, number> = {};
  for (const durability of ["relaxed", "strict"] as const) {
    const plain = new Dexie(`plain-${durability}`, { chromeTransactionDurability: durability });
    plain.version(1).stores({ user_categories: "id, user_id, name" });
    const stamps = {
      user_id: "u",
      created_at: "2026-11-30T00:00:00.000000Z",
      updated_at: "2026-11-30T00:00:00.000000Z",
    };
    const one = await timed(300, (at) =>
      plain.table("user_categories").put({ id: crypto.randomUUID(), ...row(at), ...stamps }),
    );
    results[`plain put, ${durability}`] = p50(one.slice(50));
  }
  const db = device(somebody(), { start: false });
  await db.open();
  const ours = await timed(300, (at) => db.user_categories.put(row(at)));
  results["with outbox"] = p50(ours.slice(50));
  const keys = await db.user_categories.toCollection().primaryKeys();
  results["update with outbox"] = p50(
    (await timed(200, (at) => db.user_categories.update(keys[at] as string, { position: at + 1000 }))).slice(30),
  );
  console.log(JSON.stringify(results));
  expect(results["with outbox"]).toBeLessThan(100);
});

test("first synchronisation", async () => {
  const user = somebody();
  const one = device(user);
  await one.open();
  const begun = performance.now();
  for (let at = 0; at < 20; at++)
    await one.user_categories.bulkAdd(Array.from({ length: 1000 }, (_, n) => row(at * 1000 + n)));
  const written = performance.now();
  await until(one, ({ pending }) => pending === 0);
  const pushed = performance.now();
  const two = device(user, { start: false });
  await two.open();
  let longest = 0;
  let last = performance.now();
  let running = true;
  const frame = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (running) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  const from = performance.now();
  two.resume();
  await until(two, ({ connection }) => connection === "live");
  const synced = performance.now();
  running = false;
  console.log(JSON.stringify({ write: written - begun, push: pushed - written, firstSync: synced - from, longest }));
  expect(await two.user_categories.count()).toBe(20000);
  expect(await two.verify()).toMatchObject({});
  one.close();
  two.close();
});

test("push by another to redrawn query", async () => {
  const user = somebody();
  const one = device(user);
  const two = device(user);
  await Promise.all([
    until(one, ({ connection }) => connection === "live"),
    until(two, ({ connection }) => connection === "live"),
  ]);
  const times: number[] = [];
  for (let at = 0; at < 100; at++) {
    const begun = performance.now();
    const seen = new Promise<void>((resolve) => {
      const watching = liveQuery(() => two.user_categories.where({ name: `n${at}` }).count()).subscribe((count) => {
        if (count === 1) {
          queueMicrotask(() => watching.unsubscribe());
          resolve();
        }
      });
    });
    await one.user_categories.add({ name: `n${at}` });
    await seen;
    times.push(performance.now() - begun);
  }
  console.log(JSON.stringify({ p50: p50(times), p99: sorted(times)[98] }));
  one.close();
  two.close();
});

/** Tokens of the app's user: when the app is asked, and what comes of its answers (SPEC 8). */

import { beforeEach, expect, test } from "vitest";
import { NeedsAuth, Temporary } from "../../src/sync/faults.ts";
import { claimsOf, Tokens } from "../../src/sync/tokens.ts";
import { token } from "../support/script.ts";
import { Time, turn } from "../support/time.ts";

let time: Time;
let asked = 0;
beforeEach(() => {
  time = new Time();
  asked = 0;
});

function clock() {
  return { now: () => time.now, after: time.after };
}

/** Tokens that are good for so many seconds. */
function tokens(seconds: number): Tokens {
  return new Tokens(async () => token("ann", time.now / 1_000 + seconds, ++asked), clock());
}

test("a token is kept until shortly before it runs out", async () => {
  const held = tokens(60);
  const first = await held.current();
  time.now += 49_000;
  expect(await held.current()).toBe(first);
  time.now += 1_000;
  expect(await held.current()).not.toBe(first);
  expect(asked).toBe(2);
});

test("however many ask at the same time, the app is asked once", async () => {
  const held = tokens(60);
  const all = await Promise.all([held.current(), held.renew(), held.current()]);
  expect(new Set(all).size).toBe(1);
  expect(asked).toBe(1);
});

test("a token that was not taken, or whose user may have gone, is not used again", async () => {
  const held = tokens(60);
  const first = await held.current();
  held.spoil(first);
  const second = await held.current();
  expect(second.text).not.toBe(first.text);
  held.spoil(first);
  expect(await held.current()).toBe(second);
  held.forget();
  expect(await held.current()).not.toBe(second);
});

test("nobody signed in is NeedsAuth; an app that fails to say is Temporary, and is asked again", async () => {
  let answer: () => Promise<string | null> = async () => null;
  const held = new Tokens(() => answer(), clock());
  await expect(held.current()).rejects.toBeInstanceOf(NeedsAuth);
  answer = () => Promise.reject(new Error("the network is away"));
  await expect(held.current()).rejects.toBeInstanceOf(Temporary);
  answer = async () => token("ann");
  expect((await held.current()).user).toBe("ann");
});

test("an app that never says is Temporary after a while, and is asked again", async () => {
  let answer: () => Promise<string | null> = () => new Promise(() => undefined);
  const held = new Tokens(() => answer(), clock());
  const failed = expect(held.current()).rejects.toBeInstanceOf(Temporary);
  await turn();
  time.pass(120_000);
  await failed;
  answer = async () => token("ann");
  expect((await held.current()).user).toBe("ann");
});

test("a token says whose it is in any script, and what is none is NeedsAuth", () => {
  expect(claimsOf(token("Zoë 🌊|ü", 5))).toMatchObject({ user: "Zoë 🌊|ü", expires: 5 });
  for (const text of ["", "a.b.c", "x", `${btoa("{}")}.${btoa("{}")}.`, `.${btoa('{"sub":"a"}')}.`]) {
    expect(() => claimsOf(text)).toThrow(NeedsAuth);
  }
});

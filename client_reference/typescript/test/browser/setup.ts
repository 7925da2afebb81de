/** The real service, started for the tests that need one, and ended with them. */

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { TestProject } from "vitest/node";

const ROOT = fileURLToPath(new URL("../../../../", import.meta.url));

declare module "vitest" {
  interface ProvidedContext {
    service: { url: string; secret: string };
    /** How many histories a property tries. */
    runs: number;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const settings = ["TIDEMARK_ORIGINS=*", "TIDEMARK_RATE_LIMIT=0", "TIDEMARK_LOG_LEVEL=warning"];
  const command = ["-m", "tests.servers", "examples/calendar/schema.yaml", ...settings];
  const service = spawn(`${ROOT}.venv/bin/python`, command, { cwd: ROOT, stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise<undefined>((resolve) => service.once("exit", () => resolve(undefined)));
  project.provide("service", await started(service.stdout, ended));
  project.provide("runs", Number(process.env.RUNS ?? 25));
  return async () => {
    service.stdin.end();
    await ended;
  };
}

/** What the service says of itself, in the one line that it writes. */
async function started(
  output: NodeJS.ReadableStream,
  ended: Promise<undefined>,
): Promise<{ url: string; secret: string }> {
  const line = new Promise<string>((resolve) => {
    let text = "";
    output.on("data", (part) => {
      text += part;
      if (text.includes("\n")) resolve(text);
    });
  });
  const said = await Promise.race([line, ended]);
  if (said === undefined) throw new Error("the service ended instead of starting: see above");
  return JSON.parse(said);
}

/** The built package as those see it who install it: what `exports` names is there, imports, and has types. */

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

const ROOT = new URL("..", import.meta.url);
const { name, exports } = JSON.parse(readFileSync(new URL("package.json", ROOT), "utf8"));
const run = (command, ...args) => execFileSync(command, args, { cwd: ROOT, encoding: "utf8", stdio: "pipe" });

const [packed] = JSON.parse(run("npm", "pack", "--dry-run", "--ignore-scripts", "--json"));
const files = new Set(packed.files.map(({ path }) => `./${path}`));
const missing = Object.values(exports).flatMap((target) => Object.values(target).filter((file) => !files.has(file)));
if (!files.has("./README.md")) missing.push("README.md");
if (missing.length > 0) throw new Error(`the package lacks ${missing.join(", ")}`);

// Outside a browser the modules still load: for tests, and for servers that render.
for (const part of Object.keys(exports)) {
  const names = Object.keys(await import(name + part.slice(1)));
  if (names.length === 0) throw new Error(`${name + part.slice(1)} exports nothing`);
}

try {
  const resolved = ["--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom,dom.iterable,dom.asynciterable"];
  run("npx", "tsc", "--ignoreConfig", "--noEmit", "--strict", ...resolved, "tools/consumer.mts");
} catch (fault) {
  throw new Error(`an app that uses the package does not compile:\n${fault.stdout}`);
}
console.log(`${packed.filename}: ${packed.files.length} files, ${Math.round(packed.size / 1_000)} kB`);

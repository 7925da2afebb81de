/** How much the client adds to an app (gzipped), without Dexie and React; exit code 1 where it is above the limit. */

import { gzipSync } from "node:zlib";
import { build } from "vite";

const LIMIT = 25_000;
const PARTS = ["index", "react", "service-worker"];
const ENTRY = "virtual:app";

/** An app that uses every export of these parts. */
function app(parts) {
  const code = parts.map((part) => `export * from ${JSON.stringify(`${import.meta.dirname}/../dist/${part}.js`)};`);
  return {
    name: "app",
    resolveId: (id) => (id === ENTRY ? id : null),
    load: (id) => (id === ENTRY ? code.join("\n") : null),
  };
}

async function sizeOf(parts) {
  const { output } = await build({
    configFile: false,
    logLevel: "error",
    plugins: [app(parts)],
    build: {
      write: false,
      target: "es2022",
      rollupOptions: { input: ENTRY, preserveEntrySignatures: "strict", external: /^(dexie|react)/ },
    },
  });
  return output.reduce((sum, { code }) => sum + gzipSync(code, { level: 9 }).length, 0);
}

const whole = await sizeOf(PARTS);
console.log(
  `the client in an app: ${(whole / 1_000).toFixed(1)} kB gzipped (index alone ${((await sizeOf(["index"])) / 1_000).toFixed(1)}), limit ${LIMIT / 1_000}`,
);
if (whole > LIMIT) process.exitCode = 1;

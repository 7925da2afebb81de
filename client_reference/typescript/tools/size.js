/** How much the client adds to a page (gzipped), without Dexie and React; exit code 1 where it is above the limit. */

import { gzipSync } from "node:zlib";
import { build } from "vite";

const LIMITS = {
  "the client": { parts: ["index"], limit: 25_000 },
  "with the hooks for React and the service worker's part": {
    parts: ["index", "react", "service-worker"],
    limit: 26_000,
  },
};
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

for (const [name, { parts, limit }] of Object.entries(LIMITS)) {
  const size = await sizeOf(parts);
  console.log(`${name}: ${(size / 1_000).toFixed(1)} kB gzipped, limit ${limit / 1_000}`);
  if (size > limit) process.exitCode = 1;
}

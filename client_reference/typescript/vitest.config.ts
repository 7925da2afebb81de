import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";

const source = (file: string) => fileURLToPath(new URL(`src/${file}`, import.meta.url));

/** A browser of the machine's own: none is downloaded. */
const chromium = {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
  ],
};

export default defineConfig({
  test: {
    projects: [
      {
        test: { name: "node", environment: "node", include: ["test/**/*.test.ts"], exclude: ["test/browser/**"] },
      },
      {
        test: {
          name: "browser",
          include: ["test/browser/**/*.test.{ts,tsx}"],
          globalSetup: ["test/browser/setup.ts"],
          testTimeout: 60_000,
          browser: {
            enabled: true,
            headless: true,
            screenshotFailures: false,
            provider: playwright({ launchOptions: chromium }),
            instances: [{ browser: "chromium" }],
          },
        },
        resolve: {
          alias: { "@tidemark/client/react": source("react.ts"), "@tidemark/client": source("index.ts") },
          dedupe: ["dexie"],
        },
        optimizeDeps: {
          include: [
            "dexie",
            "dexie-react-hooks",
            "fast-check",
            "react",
            "react/jsx-dev-runtime",
            "@testing-library/react",
          ],
        },
      },
    ],
  },
});

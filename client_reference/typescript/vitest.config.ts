import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";

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
          include: ["test/browser/**/*.test.ts"],
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
        optimizeDeps: { include: ["dexie", "fast-check"] },
      },
    ],
  },
});

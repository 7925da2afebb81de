import { defineConfig } from "tsdown";

export default defineConfig({
  entry: ["src/index.ts", "src/react.ts", "src/service-worker.ts"],
  format: "esm",
  platform: "browser",
  target: "es2022",
  dts: true,
  minify: true,
  sourcemap: true,
});

import { minify } from "terser";
import { defineConfig } from "tsdown";

/** Every byte is loaded by browsers: terser's output is smaller than that of the bundler itself. */
const terser = {
  name: "terser",
  async renderChunk(code: string, { fileName }: { fileName: string }) {
    if (!fileName.endsWith(".js")) return null;
    const compress = { passes: 3, ecma: 2020, unsafe_arrows: true, pure_getters: true } as const;
    const { code: small = "", map } = await minify(code, { module: true, sourceMap: true, compress });
    return { code: small, map: String(map) };
  },
};

export default defineConfig({
  entry: ["src/index.ts", "src/react.ts", "src/service-worker.ts"],
  format: "esm",
  platform: "browser",
  target: "es2022",
  dts: true,
  sourcemap: true,
  plugins: [terser],
});

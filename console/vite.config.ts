import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../sllm/gateway/console/static",
    emptyOutDir: true,
    assetsDir: "assets",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2023",
    reportCompressedSize: true,
  },
  // `npm run dev` serves the page, and passes calls on to a gateway.
  server: { proxy: { "^/(serverlessllm|grpc)\\.": "http://127.0.0.1:8080" } },
});

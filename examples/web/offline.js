// A service worker: keeps the page and its classifier for when there is no network.

const KEPT = "featpipe-bundle";
const FILES = [
  "./",
  "page.js",
  "style.css",
  "worker.js",
  "bundle.js",
  "labels.js",
  "runtime/ort.wasm.min.mjs",
  "runtime/ort-wasm-simd-threaded.mjs",
  "runtime/ort-wasm-simd-threaded.wasm",
];

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches.open(KEPT).then(async (kept) => {
      await kept.addAll(FILES);
      // The page may be served without one.
      await kept.add("classifier.onnx").catch(() => {});
    }),
  );
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

// What the server has now comes first, so that nobody is left with an old classifier.
self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(fetched(event.request));
});

async function fetched(request) {
  const kept = await caches.open(KEPT);
  try {
    const answer = await fetch(request);
    // What finds no room is not kept.
    if (answer.status === 200) await kept.put(request, answer.clone()).catch(() => {});
    return answer;
  } catch (error) {
    const old = await kept.match(request);
    if (old) return old;
    throw error;
  }
}

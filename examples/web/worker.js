// Reads and classifies beside the page, which stays quick meanwhile.

import { Bundle, pixelsOf } from "./bundle.js";

let bundle = null;

self.onmessage = async ({ data: { id, bytes, blob } }) => {
  try {
    if (bytes) {
      bundle = await Bundle.open(new Uint8Array(bytes));
      self.postMessage({ id, labels: bundle.labels });
      return;
    }
    const begun = performance.now();
    const pixels = await pixelsOf(blob);
    const read = performance.now();
    const found = await bundle.classify(pixels);
    const times = { read: read - begun, classified: performance.now() - read };
    self.postMessage({ id, ...found, ...times, width: pixels.width, height: pixels.height });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
self.postMessage({ id: 0 });

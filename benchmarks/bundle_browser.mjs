// `measure` in a browser: the page asks the server for bundle, images and pixels, and posts JSON.

import { Bundle, pixelsOf } from "/web/bundle.js";
import { measure } from "/bundle_parity.mjs";

const bytesOf = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());

async function answer() {
  try {
    const { count } = await (await fetch("/task.json")).json();
    return await measure({
      bundle: await Bundle.open(await bytesOf("/bundle.onnx")),
      pixelsOf,
      read: async (i) => (await fetch(`/image/${i}`)).blob(),
      given: (i) => bytesOf(`/pixels/${i}`),
      count,
    });
  } catch (error) {
    return { error: String(error.stack ?? error) };
  }
}

await fetch("/answer", { method: "POST", body: JSON.stringify(await answer()) });

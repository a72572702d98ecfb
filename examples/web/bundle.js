// A bundle of featpipe in the browser: a file's pixels, and what a bundle says of them.

import { labelsOf } from "./labels.js";
import * as ort from "./runtime/ort.wasm.min.mjs";

const MAX_PIXELS = 178_956_970;
ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
// More threads than one need a page that is cross-origin isolated (two headers of the server).
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
ort.env.logLevel = "error";

/** A classifier in one ONNX file. */
export class Bundle {
  /** Read a bundle from its bytes. */
  static async open(bytes) {
    const labels = labelsOf(bytes);
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      throw new Error(`the runtime cannot run it (${error.message})`);
    }
    const side = session.inputMetadata[0].shape[1];
    if (typeof side === "number") {
      throw new Error(`it takes squares of ${side} pixels alone: bundle the head with the resize`);
    }
    return new Bundle(session, labels);
  }

  constructor(session, labels) {
    this.session = session;
    this.labels = labels;
  }

  /**
   * Return label and probabilities (Float32Array, one a class) of a picture of `pixelsOf`, and how
   * many of the known images look as strange; null where the head cannot tell.
   */
  async classify({ data, width, height }) {
    const images = new ort.Tensor("uint8", data, [1, height, width, 3]);
    const asked = ["label", "probabilities", "ood_p"].filter((name) =>
      this.session.outputNames.includes(name),
    );
    const found = await this.session.run({ images }, asked);
    const strange = found.ood_p?.data[0] ?? null;
    return { label: found.label.data[0], probabilities: found.probabilities.data, strange };
  }
}

/**
 * Return an image file's pixels: RGB, upright, 8 bits, Uint8Array. Colour profiles are left alone.
 */
export async function pixelsOf(blob) {
  if (blob.size === 0) throw new Error("the file is empty");
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: "from-image",
    });
  } catch {
    throw new Error("it is damaged, or not an image in a format that this browser reads");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${width} × ${height} pixels are too many`);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data: rgba } = context.getImageData(0, 0, width, height);
  const data = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { data, width, height };
}

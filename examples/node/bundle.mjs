// A bundle of featpipe in Node.js: a file's pixels, and what a bundle says of them.

import { readFile } from "node:fs/promises";
import { getSystemErrorMap } from "node:util";

import sharp from "sharp";

import { labelsOf } from "../web/labels.js";

// Since 1.29 ONNX Runtime reports its use over the network, unless told so before it is loaded.
process.env.ORT_DISABLE_TELEMETRY = "1";
const { default: ort } = await import("onnxruntime-node");

const FORMATS = new Set(["jpeg", "png", "gif", "tiff", "webp", "heif"]);
const MAX_PIXELS = 178_956_970;
sharp.cache(false);
sharp.concurrency(1);

/** A classifier in one ONNX file. */
export class Bundle {
  /** Read a bundle; `threads` is how many one image is spread over. */
  static async open(path, threads) {
    let bytes;
    try {
      bytes = await readFile(path);
    } catch (error) {
      throw new Error(`cannot read ${path}: ${reasonOf(error)}`);
    }
    let labels, session;
    try {
      labels = labelsOf(bytes);
    } catch (error) {
      throw new Error(`${path} cannot be used: ${error.message}`);
    }
    try {
      // Threads that spin while they wait take the cores from decoding.
      const extra = { session: { intra_op: { allow_spinning: "0" } } };
      const options = { intraOpNumThreads: threads, logSeverityLevel: 4, extra };
      session = await ort.InferenceSession.create(bytes, options);
    } catch {
      throw new Error(`${path} is not a model that ONNX Runtime can read`);
    }
    const side = session.inputMetadata[0].shape[1];
    if (typeof side === "number") {
      throw new Error(
        `${path} takes squares of ${side} pixels alone: bundle the head again, with the resize`,
      );
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
 * Return an image file's pixels as featpipe sees them: RGB, upright, 8 bits, Uint8Array.
 *
 * Colour profiles are left alone, transparency is dropped, 16-bit grey is scaled.
 */
export async function pixelsOf(bytes) {
  if (bytes.length === 0) throw new Error("not an image in a format that can be read");
  const input = { ignoreIcc: true, limitInputPixels: MAX_PIXELS, failOn: "error" };
  const image = sharp(bytes, input).autoOrient();
  const { format, depth, space } = await image.metadata().catch(() => ({}));
  if (!FORMATS.has(format)) throw new Error("not an image in a format that can be read");
  try {
    if (depth === "float" || depth === "double") {
      throw new Error("its pixels are floating-point numbers");
    }
    if (depth === "int" || depth === "uint") throw new Error("its pixels have 32 bits");
    if (space === "grey16") return await fromGrey16(image);
    if (space === "cmyk") return await fromInk(image);
    const { data, info } = await raw(image.removeAlpha().toColourspace("srgb"));
    return { data, width: info.width, height: info.height };
  } catch (error) {
    throw new Error(`the image cannot be decoded (${reasonOf(error)})`);
  }
}

async function raw(image, options) {
  const { data, info } = await image.raw(options).toBuffer({ resolveWithObject: true });
  return { data: new Uint8Array(data.buffer, data.byteOffset, data.length), info };
}

/** Return 16-bit grey as RGB of 8 bits: 65535 becomes 255. */
async function fromGrey16(image) {
  const grey = image.removeAlpha().toColourspace("grey16");
  const { data, info } = await raw(grey, { depth: "ushort" });
  const values = new Uint16Array(data.slice().buffer);
  const pixels = new Uint8Array(3 * info.width * info.height);
  for (let i = 0; i < pixels.length; i++) {
    pixels[i] = values[Math.floor(i / 3) * info.channels] / 257;
  }
  return { data: pixels, width: info.width, height: info.height };
}

/** Return what was to be printed as RGB, by Pillow's formula: each ink takes its share of light. */
async function fromInk(image) {
  const { data, info } = await raw(image.pipelineColourspace("cmyk").toColourspace("cmyk"));
  const pixels = new Uint8Array(3 * info.width * info.height);
  for (let i = 0, at = 0; at < data.length; at += 4) {
    const light = 255 - data[at + 3];
    for (let ink = 0; ink < 3; ink++) {
      const share = data[at + ink] * light + 128;
      pixels[i++] = Math.max(0, light - (((share >> 8) + share) >> 8));
    }
  }
  return { data: pixels, width: info.width, height: info.height };
}

/** Return what was wrong with a file, in one line. */
export function reasonOf(error) {
  const known = getSystemErrorMap().get(error.errno);
  if (!known) return String(error.message).split(/\s+/).join(" ").trim();
  return known[1].charAt(0).toUpperCase() + known[1].slice(1);
}

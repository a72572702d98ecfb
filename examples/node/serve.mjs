#!/usr/bin/env node
// Classify images with a bundle of `featpipe bundle`, in Node.js.
//
//     npm ci
//     node serve.mjs classifier.onnx photos/ one.jpg > predictions.csv
//
// Rows, options and exit codes are those of ../serve_onnx.py: path, status, reason, label,
// probability, ood_p; --json gives one object a line, with the probability of every class. 0: every
// image has a label; 2: the command line was wrong; 3: some images failed; 4: there is no image;
// 5: the bundle cannot be used; 141: whoever read the output has gone.

import { once } from "node:events";
import { readdir, readFile, stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { extname, join } from "node:path";
import { parseArgs } from "node:util";

import { Bundle, pixelsOf, reasonOf } from "./bundle.mjs";

const SUFFIXES = new Set(
  ".jpg .jpeg .jpe .jfif .png .gif .bmp .dib .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .avif .tga"
    .split(" "),
);
const COLUMNS = ["path", "status", "reason", "label", "probability", "ood_p"];
const USAGE = "usage: node serve.mjs [--json] [--threads N] BUNDLE IMAGES...";

process.stdout.on("error", (error) => process.exit(error.code === "EPIPE" ? 141 : 8));
process.exitCode = await main();

async function main() {
  const asked = options();
  if (asked === null) return 2;
  let bundle;
  try {
    bundle = await Bundle.open(asked.bundle, asked.threads);
  } catch (error) {
    console.error(`error: ${error.message}`);
    return 5;
  }
  let done = 0;
  let failed = 0;
  if (!asked.json) await print(COLUMNS.join(","));
  for await (const picture of decoded(imagesIn(asked.images), asked.threads)) {
    const row = await rowOf(picture, bundle);
    done += 1;
    failed += row.status !== "ok";
    await print(asked.json ? JSON.stringify(row) : line(row));
  }
  if (done === 0) {
    console.error("error: there is no image in what was named: check the path");
    return 4;
  }
  return failed ? 3 : 0;
}

function options() {
  const known = { json: { type: "boolean" }, threads: { type: "string" } };
  try {
    const { values, positionals } = parseArgs({ options: known, allowPositionals: true });
    const threads = Number(values.threads ?? availableParallelism());
    if (!Number.isInteger(threads) || threads < 1) throw new Error("--threads must be 1 or more");
    if (positionals.length < 2) throw new Error("a bundle and images are needed");
    return { json: values.json, threads, bundle: positionals[0], images: positionals.slice(1) };
  } catch (error) {
    console.error(`${USAGE}\nerror: ${error.message}`);
    return null;
  }
}

/** Yield files as they are named, and the images of folders in order. */
async function* imagesIn(sources) {
  for (const source of sources) {
    const found = await stat(source).catch(() => null);
    if (found?.isDirectory()) yield* imagesBelow(source);
    else yield source;
  }
}

async function* imagesBelow(folder) {
  const entries = await readdir(folder, { withFileTypes: true });
  entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  const isImage = (name) => SUFFIXES.has(extname(name).toLowerCase()) && !name.startsWith(".");
  for (const entry of entries) {
    if (!entry.isDirectory() && isImage(entry.name)) yield join(folder, entry.name);
  }
  for (const entry of entries) {
    if (entry.isDirectory()) yield* imagesBelow(join(folder, entry.name));
  }
}

/** Yield pictures in order, a few of them decoded ahead: decoding has threads of its own. */
async function* decoded(paths, threads) {
  const ahead = [];
  for await (const path of paths) {
    ahead.push(decode(path));
    if (ahead.length > 2 * threads) yield await ahead.shift();
  }
  for (const picture of ahead) yield await picture;
}

async function decode(path) {
  let bytes;
  try {
    bytes = await readFile(path);
  } catch (error) {
    return { path, status: "unreadable", reason: reasonOf(error) };
  }
  try {
    return { path, pixels: await pixelsOf(bytes) };
  } catch (error) {
    return { path, status: "undecodable", reason: reasonOf(error) };
  }
}

async function rowOf({ path, status, reason, pixels }, bundle) {
  const failure = { path, status, reason, label: "", probability: null, ood_p: null };
  if (status) return { ...failure, probabilities: null };
  try {
    const { label, probabilities, strange } = await bundle.classify(pixels);
    const each = [...probabilities].map((p, i) => [bundle.labels[i], rounded(p)]);
    const probability = rounded(Math.max(...probabilities));
    const ood_p = strange === null ? null : rounded(strange);
    const row = { path, status: "ok", reason: "", label, probability, ood_p };
    return { ...row, probabilities: Object.fromEntries(each) };
  } catch (error) {
    return { ...failure, status: "undecodable", reason: reasonOf(error), probabilities: null };
  }
}

function rounded(value) {
  return Number(value.toFixed(6));
}

/** Return a row of CSV; what a spreadsheet would take for a formula gets a `'`. */
function line({ path, status, reason, label, probability, ood_p }) {
  const harmless = [path, status, reason, label].map((text) =>
    /^\s*[=+\-@＝＋－＠\t\r\n]|^'/.test(text) ? `'${text}` : text,
  );
  const numbers = [probability, ood_p].map((value) => (value === null ? "" : value.toFixed(6)));
  const cells = [...harmless, ...numbers];
  return cells.map((c) => (/[",\r\n]/.test(c) ? `"${c.replaceAll('"', '""')}"` : c)).join(",");
}

async function print(text) {
  if (!process.stdout.write(`${text}\n`)) await once(process.stdout, "drain");
}

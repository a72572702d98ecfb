// node bundle_node.mjs BUNDLE THREADS LIST: `measure` in Node.js, as JSON on standard output.
// LIST is a JSON file: pairs of an image and Pillow's pixels of it.

import { readFile } from "node:fs/promises";

import { Bundle, pixelsOf } from "../examples/node/bundle.mjs";
import { measure } from "./bundle_parity.mjs";

const [path, threads, list] = process.argv.slice(2);
const pairs = JSON.parse(await readFile(list, "utf8"));
const found = await measure({
  bundle: await Bundle.open(path, Number(threads)),
  pixelsOf,
  read: (i) => readFile(pairs[i][0]),
  given: (i) => readFile(pairs[i][1]),
  count: pairs.length,
});
process.stdout.write(JSON.stringify(found));

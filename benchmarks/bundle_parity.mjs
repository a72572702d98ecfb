// What Node.js and the browser are asked: all pictures once with their own decoder and, where
// that gives other pixels than Pillow's, once more with Pillow's.

/**
 * Classify `count` pictures. `read(i)` returns picture i as `pixelsOf` takes it, `given(i)`
 * Pillow's pixels: width and height (uint32, little endian), then RGB.
 */
export async function measure({ bundle, pixelsOf, read, given, count }) {
  const pictures = [];
  for (let i = 0; i < count; i++) {
    const reference = parsed(await given(i));
    const source = await read(i);
    const begun = performance.now();
    let own = null;
    try {
      own = await pixelsOf(source);
    } catch (error) {
      pictures.push({ error: error.message });
      continue;
    }
    const decoded = performance.now();
    const found = await bundle.classify(own);
    const classified = performance.now();
    const apart = difference(own, reference);
    const equal = apart.largest === 0 ? found : await bundle.classify(reference);
    pictures.push({
      size: [own.width, own.height],
      apart,
      own: plain(found),
      given: plain(equal),
      decoding: decoded - begun,
      classifying: classified - decoded,
    });
  }
  return { labels: bundle.labels, pictures };
}

function parsed(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [width, height] = [view.getUint32(0, true), view.getUint32(4, true)];
  return { width, height, data: bytes.slice(8) };
}

function difference(one, other) {
  if (one.width !== other.width || one.height !== other.height) return { largest: 255, mean: 255 };
  let [largest, sum, differing] = [0, 0, 0];
  for (let i = 0; i < one.data.length; i++) {
    const apart = Math.abs(one.data[i] - other.data[i]);
    if (apart > largest) largest = apart;
    sum += apart;
    differing += apart > 0;
  }
  return { largest, mean: sum / one.data.length, share: differing / one.data.length };
}

function plain({ label, probabilities }) {
  return { label, probabilities: [...probabilities] };
}

// The labels of a bundle: entry `featpipe.labels` of the file's metadata, which the JavaScript
// API of ONNX Runtime does not hand out. A reader of protobuf as far as that needs one:
// ModelProto has `repeated StringStringEntryProto metadata_props = 14`, with key = 1, value = 2.

const METADATA = 14;

/** Return the labels in a bundle's bytes, in the order of its probabilities. */
export function labelsOf(bytes) {
  for (const [field, entry] of fields(bytes)) {
    if (field !== METADATA) continue;
    const parts = new Map([...fields(entry)].map(([number, part]) => [number, text(part)]));
    if (parts.get(1) === "featpipe.labels") return JSON.parse(parts.get(2));
  }
  throw new Error("it is no bundle: featpipe bundle makes one");
}

/** Yield the number and the bytes of every field that has a length; skip the others. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new Error("it is not an ONNX file, or it is cut short");
  };
  const skip = { 0: varint, 1: () => (at += 8), 5: () => (at += 4) };
  while (at < bytes.length) {
    const tag = varint();
    if (tag % 8 === 2) {
      const end = varint() + at;
      if (end > bytes.length) throw new Error("it is not an ONNX file, or it is cut short");
      yield [Math.floor(tag / 8), bytes.subarray(at, end)];
      at = end;
    } else if (tag % 8 in skip) {
      skip[tag % 8]();
    } else {
      throw new Error("it is not an ONNX file, or it is cut short");
    }
  }
}

function text(bytes) {
  return new TextDecoder().decode(bytes);
}

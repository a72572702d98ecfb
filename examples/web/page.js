// The page: takes a picture, hands it to the worker, shows what comes back.

const MOST_CLASSES = 10;
const STRANGE = 0.05; // of the known images so many look as strange, or stranger
const byId = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let labels = null;
let latest = 0;

worker.onmessage = ({ data }) => {
  waiting.get(data.id)?.(data);
  waiting.delete(data.id);
};
worker.onerror = () => {
  fail("The runtime is not beside this page: run npm ci and npm run build in its folder.");
};

/** Ask the worker, and wait for its answer. */
function ask(question) {
  const id = ++latest;
  return new Promise((resolve) => {
    waiting.set(id, resolve);
    worker.postMessage({ id, ...question });
  });
}

async function load(bytes, name) {
  labels = null;
  say(`${name} is being loaded.`);
  const { labels: known, error } = await ask({ bytes });
  if (error) {
    fail(`${name} cannot be used: ${error}.`);
    return;
  }
  labels = known;
  byId("error").hidden = true;
  say(`Ready: ${name} knows ${labels.length} classes.`);
}

async function loadBeside() {
  try {
    const answer = await fetch("classifier.onnx");
    if (answer.ok) {
      await load(await answer.arrayBuffer(), "classifier.onnx");
      return;
    }
  } catch {
    // Neither a server nor what it has left behind: the sentence below is for that, too.
  }
  byId("other").open = true;
  fail("There is no classifier.onnx beside this page: choose a file of featpipe bundle below.");
}

async function classify(file) {
  if (labels === null) {
    fail("There is no classifier yet: wait until it is loaded, or choose one.");
    return;
  }
  byId("error").hidden = true;
  say(`${file.name} is being classified.`);
  const question = ask({ blob: file });
  const mine = latest;
  const found = await question;
  // Another picture has been chosen meanwhile.
  if (mine !== latest) return;
  if (found.error) {
    byId("result").hidden = true;
    fail(`${file.name} cannot be classified: ${found.error}.`);
    return;
  }
  show(found, file);
}

function show(found, file) {
  const best = Math.max(...found.probabilities);
  URL.revokeObjectURL(byId("preview").src);
  byId("preview").src = URL.createObjectURL(file);
  byId("preview").alt = file.name;
  byId("label").textContent = found.label;
  byId("time").textContent =
    `${found.width} × ${found.height} pixels; read in ${milliseconds(found.read)}, ` +
    `classified in ${milliseconds(found.classified)}`;
  const isStrange = found.strange !== null && found.strange < STRANGE;
  byId("strange").hidden = !isStrange;
  byId("strange").textContent = isStrange
    ? `This may be nothing the classifier knows: ${percent(found.strange)} of the images that it ` +
      "has learnt on look as strange."
    : "";
  const order = [...found.probabilities.keys()].sort(
    (a, b) => found.probabilities[b] - found.probabilities[a] || a - b,
  );
  const shown = order.slice(0, MOST_CLASSES);
  byId("classes").replaceChildren(
    ...shown.map((i) => row(labels[i], found.probabilities[i])),
  );
  byId("others").hidden = order.length === shown.length;
  byId("others").textContent = `and ${order.length - shown.length} less likely classes`;
  byId("result").hidden = false;
  say(`${file.name}: ${found.label}, ${percent(best)}${isStrange ? ", but unlike what is known" : ""}`);
}

function row(label, probability) {
  const item = document.createElement("li");
  const [bar, name, value] = [0, 1, 2].map(() => document.createElement("span"));
  bar.className = "bar";
  bar.style.width = `${100 * probability}%`;
  name.textContent = label;
  value.textContent = percent(probability);
  item.append(bar, name, value);
  return item;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const milliseconds = (time) => `${Math.max(1, Math.round(time))} ms`;

function say(text) {
  byId("status").textContent = text;
}

function fail(text) {
  say("");
  byId("error").textContent = text;
  byId("error").hidden = false;
}

function take(files) {
  const [file] = files;
  if (file) classify(file);
}

byId("picture").addEventListener("change", ({ target }) => take(target.files));
byId("bundle").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (file) await load(await file.arrayBuffer(), file.name);
});
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (relatedTarget === null) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

waiting.set(0, loadBeside);
// Where the browser allows it (https, localhost), the page works without its server from now on.
if (navigator.serviceWorker) navigator.serviceWorker.register("offline.js").catch(() => {});

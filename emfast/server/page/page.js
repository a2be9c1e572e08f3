// One image at a time: send it, show the answer, cut it at the slider's threshold.

import { maskFile, maskOf, outlined } from "./outline.js";

const LEVELS = 256;
const part = (id) => document.getElementById(id);
const picture = part("picture");
const slider = part("threshold");

let token = "";
let file = null; // what was sent last
let layers = null; // its answer
let labels = [];
let asked = 0; // answers to an earlier image come too late
let shown = ""; // address of the mask to download

function say(text, wrong = false) {
  part("status").textContent = text;
  part("status").classList.toggle("wrong", wrong);
}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    part("access").hidden = false;
    part("token").focus();
    throw new Error(token ? "That is not the token." : "");
  }
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.got ? `Got ${told.got}. Accepted: ${told.accepted}.` : answer.statusText);
}

async function describe() {
  const model = await (await ask("v1/model")).json();
  part("access").hidden = true;
  labels = model.labels;
  slider.value = Math.round(model.threshold * LEVELS);
  const { engine, precision } = model.engine;
  part("model").textContent = `${labels.join(", ")} · ${model.bundle.name} · ${engine} ${precision}`;
  part("sizes").hidden = model.pixel_size === null;
  part("pixels").placeholder = model.pixel_size ?? "";
  part("classes").hidden = labels.length === 1;
  part("label").replaceChildren(...labels.map((name, i) => new Option(name, i + 1)));
  say("");
}

async function decode(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

async function segment(chosen) {
  const turn = ++asked;
  file = chosen;
  say(`Segmenting ${file.name} …`);
  const start = performance.now();
  try {
    const label = part("label").value || 1;
    const reading = new URLSearchParams({ output: "layers", label });
    if (part("inverted").checked) reading.set("invert", "true");
    if (part("pixels").value) reading.set("pixel_size", part("pixels").value);
    const path = `v1/segment?${reading}`;
    const answer = await decode(await (await ask(path, { method: "POST", body: file })).blob());
    if (turn !== asked) return;
    layers = answer;
  } catch (error) {
    if (turn === asked) say(error.message, true);
    return;
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(2);
  picture.width = layers.width;
  picture.height = layers.height;
  part("result").hidden = false;
  say(`${file.name}, ${layers.width} × ${layers.height} pixels, segmented in ${seconds} s.`);
  show();
}

function show() {
  if (layers === null) return;
  const { width, height } = layers;
  const mask = maskOf(layers, Number(slider.value));
  // Thick enough to be seen where the picture is shown smaller than it is.
  const reach = Math.ceil((1.5 * width) / (picture.clientWidth * devicePixelRatio || width));
  const drawn = part("outlined").checked ? reach : 0;
  picture.getContext("2d").putImageData(outlined(layers, mask, drawn), 0, 0);
  const value = (slider.value / LEVELS).toFixed(3);
  part("value").textContent = value;
  slider.setAttribute("aria-valuetext", value);
  const share = (100 * mask.reduce((sum, inside) => sum + inside, 0)) / mask.length;
  part("share").textContent = `${share.toFixed(1)} % ${labels[part("label").value - 1] ?? ""}`;
  keep(mask);
}

async function keep(mask) {
  const made = await maskFile(mask, layers.width, layers.height);
  URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(made);
  part("download").href = shown;
  part("download").download = `${file.name.replace(/\.[^.]*$/, "")}-mask.png`;
}

let due = 0; // at most one drawing a frame, however fast the slider moves
function showSoon() {
  cancelAnimationFrame(due);
  due = requestAnimationFrame(show);
}
slider.addEventListener("input", showSoon);
part("outlined").addEventListener("input", showSoon);
window.addEventListener("resize", showSoon);
for (const id of ["label", "inverted", "pixels"]) {
  part(id).addEventListener("change", () => {
    if (file !== null) segment(file);
  });
}

part("file").addEventListener("change", (event) => {
  if (event.target.files.length) segment(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
part("sample").addEventListener("click", async () => {
  try {
    segment(new File([await (await ask("sample.png")).blob()], "sample.png"));
  } catch (error) {
    say(error.message, true);
  }
});
for (const type of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(type, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) segment(event.dataTransfer.files[0]);
  });
}
part("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = part("token").value;
  describe().catch((error) => say(error.message, true));
});
describe().catch((error) => say(error.message, true));

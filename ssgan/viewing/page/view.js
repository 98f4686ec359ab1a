// The page of `ssgan view`: two linked screens and the controls that both sources, a run and files, share.
import { startFiles } from "./files.js";
import { startRun } from "./run.js";
import { Screen } from "./screen.js";

const root = document.documentElement;
export const byId = (id) => document.getElementById(id);

export function failed(error) {
  root.dataset.errors = String(Number(root.dataset.errors ?? 0) + 1);
  say(error.message ?? String(error), true);
}

export function say(text, trouble = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("trouble", trouble);
}

// Asks the server; an answer that is no success becomes an error with the server's words.
export async function ask(address) {
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new Error("The server has ended or cannot be reached: start `ssgan view` again and open its new address.");
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

export const askJson = async (address) => (await ask(address)).json();
export const askBytes = async (address) => (await ask(address)).arrayBuffer();

// Makes an element: make("p", {className: "note"}, "text", child, ...)
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A labelled slider; shown(value) is the text beside it.
export function slider(id, label, range, shown, changed) {
  const input = make("input", { type: "range", id, ...range });
  const output = make("output");
  output.htmlFor = id;
  const update = () => {
    output.textContent = shown(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => { update(); changed(); });
  input.refresh = update;
  update();
  return make("p", { className: "slider" }, make("label", { htmlFor: id }, label), input, output);
}

export class Screens {
  constructor() {
    this.first = new Screen(byId("first"), (mm, value) => this.located(mm, value));
    this.second = null;
    this.window = null; // [low, high] that a reset goes back to; null for each file's own
  }

  async start() {
    await this.first.start();
    this.connect();
    return this;
  }

  get all() { return this.second ? [this.first, this.second] : [this.first]; }

  // Shows bytes beside the first volume, or nothing there.
  async beside(buffer, name, title) {
    byId("second").hidden = !buffer;
    if (buffer && !this.second) {
      this.second = await new Screen(byId("second"), (mm) => this.located(mm)).start();
      this.first.nv.broadcastTo([this.second.nv], { "2d": true, "3d": true });
      this.second.nv.broadcastTo([this.first.nv], { "2d": true, "3d": true });
    }
    if (buffer) {
      await this.second.show(buffer, name, title, this.window);
      this.apply(this.second);
    }
    for (const screen of this.all) screen.nv.resizeListener();
  }

  async show(buffer, name, title) {
    const fresh = this.first.header === undefined || !this.window;
    await this.first.show(buffer, name, title, this.window);
    if (fresh) this.newRange();
    if (fresh) this.apply(this.first);
  }

  // Gives a screen what the controls say.
  apply(screen) {
    screen.setView(Number(byId("view").value));
    screen.setColours(byId("colours").value);
    screen.setCrosshair(byId("crosshair").checked);
    screen.turn(Number(byId("azimuth").value), Number(byId("elevation").value));
    if (screen === this.second && this.window) screen.setWindow(...this.range()); // other files have windows of their own
    if (screen === this.second) screen.moveTo([0, 1, 2].map((i) => Number(byId(`mm-${i}`).value)));
  }

  range() {
    const level = Number(byId("level").value), half = Number(byId("width").value) / 2;
    return [level - half, level + half];
  }

  // Sets the sliders of level and window for the volume that is shown, and the steps of the crosshair.
  newRange() {
    const volume = this.first.volume;
    const [low, high] = this.window ?? [volume.cal_min, volume.cal_max];
    const bottom = Math.min(low, volume.global_min), top = Math.max(high, volume.global_max);
    const step = 10 ** Math.floor(Math.log10((top - bottom || 1) / 200));
    Object.assign(byId("level"), { min: bottom, max: top, step: "any", value: (low + high) / 2 });
    Object.assign(byId("width"), { min: step, max: top - bottom || 1, step: "any", value: high - low });
    this.digits = Math.max(0, -Math.log10(step));
    this.reset = [(low + high) / 2, high - low];
    for (const i of [0, 1, 2]) byId(`mm-${i}`).step = Number(volume.hdr.pixDims[i + 1].toPrecision(4));
    this.showRange();
  }

  showRange() {
    for (const id of ["level", "width"]) {
      const text = Number(byId(id).value).toFixed(this.digits);
      document.querySelector(`output[for=${id}]`).textContent = text;
      byId(id).setAttribute("aria-valuetext", text);
    }
  }

  located(mm, value) {
    for (const i of [0, 1, 2]) if (document.activeElement !== byId(`mm-${i}`)) byId(`mm-${i}`).value = mm[i].toFixed(1);
    if (value !== undefined) byId("intensity").textContent = Number(value.toPrecision(5));
  }

  connect() {
    const each = (act) => { for (const screen of this.all) act(screen); };
    const on = (id, kind, act) => byId(id).addEventListener(kind, act);
    on("view", "change", () => each((s) => s.setView(Number(byId("view").value))));
    on("colours", "change", () => each((s) => s.setColours(byId("colours").value)));
    on("crosshair", "change", () => each((s) => s.setCrosshair(byId("crosshair").checked)));
    const windowed = () => { this.showRange(); each((s) => s.setWindow(...this.range())); };
    // The arrow keys move a slider by a hundredth of its range.
    for (const id of ["level", "width"]) on(id, "input", windowed);
    for (const id of ["level", "width"]) on(id, "keydown", (event) => {
      const sign = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (!sign) return;
      event.preventDefault();
      byId(id).valueAsNumber += (sign * (byId(id).max - byId(id).min)) / 100;
      windowed();
    });
    on("window-reset", "click", () => {
      [byId("level").value, byId("width").value] = this.reset;
      windowed();
    });
    for (const i of [0, 1, 2]) on(`mm-${i}`, "input", () => {
      const mm = [0, 1, 2].map((j) => Number(byId(`mm-${j}`).value));
      each((s) => s.moveTo(mm));
    });
    const turned = () => {
      for (const id of ["azimuth", "elevation"]) {
        document.querySelector(`output[for=${id}]`).textContent = `${byId(id).value}°`;
        byId(id).setAttribute("aria-valuetext", `${byId(id).value} degrees`);
      }
      each((s) => s.turn(Number(byId("azimuth").value), Number(byId("elevation").value)));
    };
    for (const id of ["azimuth", "elevation"]) on(id, "input", turned);
    turned();
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
  }
}

async function main() {
  const about = await askJson("about");
  byId("title").textContent = document.title = about.title;
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("This browser has no WebGL 2, by which volumes are drawn; try another, or `ssgan generate`.");
  }
  const screens = await new Screens().start();
  await (about.kind === "run" ? startRun : startFiles)(about, screens);
  root.dataset.ready = "true";
}

root.dataset.errors = "0";
addEventListener("error", (event) => failed(event.error ?? event.message));
addEventListener("unhandledrejection", (event) => failed(event.reason));
main().catch(failed);

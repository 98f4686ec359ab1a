// One canvas with NiiVue: shows a volume and at most one overlay on it.
import { Niivue, NVImage } from "./niivue.js";

const FLOAT32 = 16; // NIfTI's code
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i; // names of renderers that draw on the CPU
// There a quarter of the pixels, which takes a fifth of the time, with letters that stay legible.
const RESOLUTION = drawsOnCpu() ? { forceDevicePixelRatio: 0.5, fontMinPx: 22 } : {};
const OPTIONS = {
  ...RESOLUTION, logLevel: "error", loadingText: "", dragAndDropEnabled: false, multiplanarShowRender: 1, multiplanarLayout: 2,
  crosshairColor: [1, 0.35, 0.1, 1], crosshairWidth: 0.6, crosshairWidthUnit: "percent", fontColor: [0.75, 0.78, 0.82, 1], isAntiAlias: false,
};

export class Screen {
  // figure: holds the canvas and its caption. moved(mm, intensity): called when the crosshair moves.
  constructor(figure, moved) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.nv = new Niivue(OPTIONS);
    this.nv.onLocationChange = (at) => moved(at.mm, at.values[0]?.value);
    this.look = {};
  }

  async start() {
    await this.nv.attachToCanvas(this.canvas, false);
    this.setCrosshair(true); // its width in per cent counts from here on
    return this;
  }

  get volume() { return this.nv.volumes[0]; }

  // Shows the bytes of a NIfTI file. window: [low, high], or null for the file's own percentiles. A volume of the same
  // geometry, as a slider makes many, changes the voxels alone.
  async show(buffer, name, title, window) {
    if (!this.replaceVoxels(buffer)) {
      const [cal_min, cal_max] = window ?? [NaN, NaN];
      const options = { url: name, name, buffer, cal_min, cal_max, colormap: this.look.colours ?? "gray" };
      const volume = await NVImage.loadFromUrl(options);
      for (const old of [...this.nv.volumes].reverse()) this.nv.removeVolume(old);
      this.nv.addVolume(volume);
      this.header = header(buffer);
    }
    this.figure.querySelector("figcaption").textContent = title;
    this.canvas.setAttribute("aria-label", title);
    this.nv.createOnLocationChange();
  }

  replaceVoxels(buffer) {
    const other = header(buffer);
    if (!other || other !== this.header || this.nv.volumes.length !== 1) return false;
    const voxels = new Float32Array(buffer, 352);
    if (voxels.length !== this.volume.img.length) return false;
    this.volume.img.set(voxels);
    this.nv.updateGLVolume();
    return true;
  }

  // Lays a volume over the one that is shown. Whole numbers from 0 to 255 are labels, each with a colour of its own, or
  // with colourOf(label): [red, green, blue], or null for a label that is clear.
  async overlay(buffer, name, opacity, colourOf = hue) {
    this.removeOverlay();
    if (!buffer) return;
    const volume = await NVImage.loadFromUrl({ url: name, name, buffer, opacity, colormap: "warm" });
    const labels = labelsOf(volume);
    if (labels) volume.setColormapLabel(colours(labels, colourOf));
    this.nv.addVolume(volume);
  }

  removeOverlay() {
    if (this.nv.volumes[1]) this.nv.removeVolume(this.nv.volumes[1]);
  }

  setOpacity(opacity) {
    if (this.nv.volumes[1]) this.nv.setOpacity(1, opacity);
  }

  setView(type) {
    this.nv.setSliceType(type);
  }

  setColours(name) {
    this.look.colours = name;
    if (this.volume) this.nv.setColormap(this.volume.id, name);
  }

  setWindow(low, high) {
    if (!this.volume) return;
    this.volume.cal_min = low;
    this.volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  setCrosshair(shown) {
    this.nv.setCrosshairWidth(shown ? OPTIONS.crosshairWidth : 0);
  }

  moveTo(mm) {
    if (!this.volume) return;
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.drawScene();
    this.nv.createOnLocationChange();
  }

  turn(azimuth, elevation) {
    this.nv.setRenderAzimuthElevation(azimuth, elevation);
  }
}

// Whether this browser draws without a GPU.
function drawsOnCpu() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const name = gl?.getExtension("WEBGL_debug_renderer_info")?.UNMASKED_RENDERER_WEBGL ?? gl?.RENDERER;
  return gl !== null && SOFTWARE.test(gl.getParameter(name));
}

// The header of an uncompressed little-endian NIfTI-1 file of float32 without extensions, as text; null for other files.
function header(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 352 || view.getInt32(0, true) !== 348) return null;
  const scaled = view.getFloat32(112, true);
  const plain = view.getInt16(70, true) === FLOAT32 && view.getFloat32(108, true) === 352 && !(scaled && scaled !== 1);
  return plain ? new Uint8Array(buffer, 0, 352).join() : null;
}

// The different values of a volume where all are whole numbers from 0 to 255 and few; null otherwise.
function labelsOf(volume) {
  const found = new Set(volume.img);
  const whole = [...found].every((v) => Number.isInteger(v) && v >= 0 && v <= 255);
  return whole && found.size <= 64 ? [...found].sort((a, b) => a - b) : null;
}

// NiiVue's table of the labels' colours.
function colours(labels, colourOf) {
  const map = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  for (const label of labels) {
    const colour = colourOf(label), [red, green, blue] = colour ?? [0, 0, 0];
    map.R.push(red); map.G.push(green); map.B.push(blue);
    map.A.push(colour ? 255 : 0); map.I.push(label); map.labels.push(String(label));
  }
  return map;
}

// The colour of a label: hues that turn by the golden angle, label 0 clear.
function hue(label) {
  if (label === 0) return null;
  const degrees = (label * 137.508) % 360;
  return [0, 8, 4].map((n) => {
    const k = (n + degrees / 30) % 12;
    return Math.round(255 * (0.55 - 0.45 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

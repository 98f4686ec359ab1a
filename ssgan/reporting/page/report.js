"use strict";
// Draws slices of the embedded volumes on canvases and turns the strip of snapshots into a slider. What is shown is kept
// in the address (#axial=3&snapshot=2), so that a view can be linked. Without this script the page shows still pictures.
(() => {
  const root = document.documentElement;
  root.dataset.errors = "0";
  const failed = (what) => { root.dataset.errors = String(Number(root.dataset.errors) + 1); root.dataset.error = String(what); };
  addEventListener("error", (event) => failed(event.message));
  addEventListener("unhandledrejection", (event) => failed(event.reason));

  const wanted = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const sliders = new Map(); // name -> [input, show(value)]

  function slider(name, show) {
    const input = document.getElementById("slider-" + name);
    if (!input) return;
    const update = () => show(Number(input.value));
    input.addEventListener("input", () => {
      update();
      const state = new URLSearchParams();
      for (const [key, [other]] of sliders) if (other.value !== other.defaultValue) state.set(key, other.value);
      history.replaceState(null, "", "#" + state);
    });
    sliders.set(name, [input, update]);
  }

  function fromAddress() {
    const state = wanted();
    for (const [name, [input, update]] of sliders) {
      if (state.has(name)) input.value = state.get(name);
      update();
    }
  }

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Which index a pixel (row, column) of a plane reads from a volume (Z, Y, X), rows from the top.
  const PLANES = {
    axial: { axis: 0, rows: 1, columns: 2, at: (i, r, c) => [i, r, c] },
    coronal: { axis: 1, rows: 0, columns: 2, at: (i, r, c) => [r, i, c] },
    sagittal: { axis: 2, rows: 0, columns: 1, at: (i, r, c) => [r, c, i] },
  };

  function drawPlane(name, index, about, voxels, masks) {
    const plane = PLANES[name], [nz, ny, nx] = about.shape;
    const shown = masks && document.getElementById("show-masks").checked;
    const height = about.shape[plane.rows], width = about.shape[plane.columns];
    for (const canvas of document.querySelectorAll(`canvas[data-plane="${name}"]`)) {
      const start = Number(canvas.dataset.volume) * nz * ny * nx;
      canvas.width = width;
      canvas.height = height;
      canvas.style.aspectRatio = `${width * about.spacing[plane.columns]} / ${height * about.spacing[plane.rows]}`;
      const context = canvas.getContext("2d"), image = context.createImageData(width, height);
      for (let r = 0; r < height; r++) {
        for (let c = 0; c < width; c++) {
          const [z, y, x] = plane.at(index, height - 1 - r, c);
          const voxel = start + (z * ny + y) * nx + x, grey = voxels[voxel], at = 4 * (r * width + c);
          const found = shown && masks[voxel] ? about.classes[masks[voxel] - 1] : undefined; // none of class 0 and 255
          for (let i = 0; i < 3; i++) image.data[at + i] = found ? grey + about.tint * (found.colour[i] - grey) : grey;
          image.data[at + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    }
    const output = document.getElementById("output-" + name);
    const mm = index * about.spacing[plane.axis];
    output.textContent = `slice ${index + 1} of ${about.shape[plane.axis]}, ${mm.toFixed(1)} mm`;
    document.getElementById("slider-" + name).setAttribute("aria-valuetext", output.textContent);
  }

  async function volumes() {
    const text = document.getElementById("volumes").textContent.trim();
    const about = text ? JSON.parse(text) : null;
    const masks = about && about.masks ? await unpack(about.masks) : null;
    return { about, voxels: about ? await unpack(about.data) : null, masks };
  }

  async function main() {
    globalThis.reportVolumes = volumes(); // the viewer's script waits for them too
    const { about, voxels, masks } = await globalThis.reportVolumes;
    root.classList.add("js"); // only now: a browser that cannot unpack keeps the still pictures
    const planes = about ? Object.keys(PLANES) : [];
    for (const name of planes) slider(name, (index) => drawPlane(name, index, about, voxels, masks));
    if (masks) document.getElementById("show-masks").addEventListener("change", fromAddress);
    const frames = [...document.querySelectorAll("#snapshot-strip figure")];
    slider("snapshot", (index) => {
      frames.forEach((frame, i) => frame.classList.toggle("shown", i === index));
      const label = frames[index].dataset.label;
      document.getElementById("output-snapshot").textContent = label;
      document.getElementById("slider-snapshot").setAttribute("aria-valuetext", label);
    });
    fromAddress();
    addEventListener("hashchange", fromAddress);
    root.dataset.ready = "true";
  }

  main().catch(failed);
})();

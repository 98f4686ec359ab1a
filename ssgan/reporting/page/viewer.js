
// Two of the embedded volumes side by side, linked, with their masks in colour. Without WebGL 2 the panel stays hidden, and the slices serve.
async function startViewer() {
  const panel = document.getElementById("viewer");
  if (!document.createElement("canvas").getContext("webgl2")) return;
  const { about, voxels, masks } = await globalThis.reportVolumes.catch(() => ({})); // report.js tells why
  if (!about) return;
  const head = Uint8Array.from(atob(about.nifti), (c) => c.charCodeAt(0));
  const labels = head.slice(); // class numbers are stored as they are
  new DataView(labels.buffer).setFloat32(112, 1, true); // scl_slope
  new DataView(labels.buffer).setFloat32(116, 0, true); // scl_inter
  const size = about.shape.reduce((a, b) => a * b, 1);
  const file = (header, values, number) => {
    const bytes = new Uint8Array(header.length + size);
    bytes.set(header);
    bytes.set(values.subarray(number * size, (number + 1) * size), header.length);
    return bytes.buffer;
  };
  const colour = (label) => about.classes[label - 1]?.colour ?? null; // none of class 0 and 255
  const box = document.getElementById("show-masks"), opacity = () => (box.checked ? about.tint : 0);
  panel.hidden = false;
  const screens = [];
  for (const side of ["left", "right"]) {
    const figure = document.getElementById(`viewer-${side}`), select = figure.querySelector("select");
    const screen = await new Screen(figure, (mm, value) => {
      const place = [...mm].slice(0, 3).map((v) => v.toFixed(1)).join(", ");
      figure.querySelector("figcaption").textContent = `${place} mm: ${Number((value ?? 0).toPrecision(4))}`;
    }).start();
    const show = async () => {
      const number = Number(select.value);
      await screen.show(file(head, voxels, number), "volume.nii", select.selectedOptions[0].text, about.window);
      if (masks) await screen.overlay(file(labels, masks, number), "mask.nii", opacity(), colour);
    };
    select.addEventListener("change", () => show().catch(viewerFailed));
    screens.push(screen);
    await show();
  }
  if (masks) box.addEventListener("change", () => screens.forEach((screen) => screen.setOpacity(opacity())));
  screens[0].nv.broadcastTo([screens[1].nv], { "2d": true, "3d": true });
  screens[1].nv.broadcastTo([screens[0].nv], { "2d": true, "3d": true });
  const view = document.getElementById("view");
  view.addEventListener("change", () => screens.forEach((screen) => screen.setView(Number(view.value))));
  document.documentElement.dataset.viewer = "true";
}

function viewerFailed(error) {
  document.getElementById("viewer").hidden = true;
  throw error; // counted by report.js
}

startViewer().catch(viewerFailed);


// Two of the embedded volumes side by side, linked. Without WebGL 2 the panel stays hidden, and the slices serve.
async function startViewer() {
  const panel = document.getElementById("viewer");
  if (!document.createElement("canvas").getContext("webgl2")) return;
  const { about, voxels } = await globalThis.reportVolumes.catch(() => ({})); // report.js tells why
  if (!about) return;
  const head = Uint8Array.from(atob(about.nifti), (c) => c.charCodeAt(0));
  const size = about.shape.reduce((a, b) => a * b, 1);
  const file = (number) => {
    const bytes = new Uint8Array(head.length + size);
    bytes.set(head);
    bytes.set(voxels.subarray(number * size, (number + 1) * size), head.length);
    return bytes.buffer;
  };
  panel.hidden = false;
  const screens = [];
  for (const side of ["left", "right"]) {
    const figure = document.getElementById(`viewer-${side}`), select = figure.querySelector("select");
    const screen = await new Screen(figure, (mm, value) => {
      const place = [...mm].slice(0, 3).map((v) => v.toFixed(1)).join(", ");
      figure.querySelector("figcaption").textContent = `${place} mm: ${Number((value ?? 0).toPrecision(4))}`;
    }).start();
    const show = () => screen.show(file(Number(select.value)), "volume.nii", select.selectedOptions[0].text, about.window);
    select.addEventListener("change", () => show().catch(viewerFailed));
    screens.push(screen);
    await show();
  }
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

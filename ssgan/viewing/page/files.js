// The controls of a data set and of NIfTI files: which one is shown, what lies over it and beside it.
import { askBytes, askJson, byId, failed, make, say, slider } from "./view.js";

const address = (kind, item) => `${kind}/${item.name.split("/").map(encodeURIComponent).join("/")}`;

function options(items, first) {
  const none = first ? [make("option", { value: "" }, first)] : [];
  return [...none, ...items.map((item, i) => make("option", { value: i }, item.title))];
}

export async function startFiles(about, screens) {
  const { items } = about, root = document.documentElement;
  const select = (id, label, ...children) =>
    make("p", {}, make("label", { htmlFor: id }, label), make("select", { id }, ...children));
  const button = (id, text) => make("button", { type: "button", id }, text);
  const what = about.kind === "dataset" ? "Volume" : "File";
  const opacity = slider("opacity", "Opacity", { min: 0, max: 1, step: 0.05, value: 0.5 }, (v) => v.toFixed(2),
    () => screens.first.setOpacity(Number(byId("opacity").value)));
  byId("own").append(make("fieldset", {}, make("legend", {}, what),
    select("item", what, ...options(items)),
    make("p", {}, button("previous", "Previous"), button("next", "Next"), make("span", { id: "position" })),
    make("ul", { id: "about", className: "near note" })),
  make("fieldset", {}, make("legend", {}, "Compare"),
    ...(about.kind === "files" ? [select("overlay", "Over it", ...options(items, "nothing")), opacity] : []),
    select("beside", "Beside it", ...options(items, "nothing"))));
  if (about.skipped.length) {
    const lines = about.skipped.map((text) => make("li", {}, text));
    const summary = make("summary", {}, `${about.skipped.length} files were left out`);
    byId("own").append(make("details", {}, summary, make("ul", {}, ...lines)));
  }

  const chosen = (id) => (byId(id) && byId(id).value !== "" ? items[Number(byId(id).value)] : null);
  const file = (item) => item.name.split("/").at(-1);
  const name = (item) => (about.kind === "dataset" ? "volume.nii" : file(item));
  let turn = 0; // of the newest request: an older answer is left out

  async function show() {
    const mine = ++turn, item = chosen("item");
    byId("position").textContent = `${items.indexOf(item) + 1} of ${items.length}`;
    byId("previous").disabled = items.indexOf(item) === 0;
    byId("next").disabled = items.indexOf(item) === items.length - 1;
    byId("about").replaceChildren();
    say("");
    const verdict = item.about ?? askJson(address("verdict", item));
    try {
      const buffer = await askBytes(address("item", item));
      if (mine !== turn) return;
      await screens.show(buffer, name(item), item.title);
      await overlay();
    } catch (error) {
      failed(new Error(`${item.title} cannot be shown: ${error.message ?? error}`));
    }
    const lines = await verdict;
    if (mine !== turn) return;
    byId("about").replaceChildren(...lines.map((line) => make("li", {}, line)));
    root.dataset.shown = item.name;
  }

  async function overlay() {
    const item = chosen("overlay");
    if (!byId("overlay")) return;
    const buffer = item && (await askBytes(address("item", item)));
    await screens.first.overlay(buffer, item && name(item), Number(byId("opacity").value));
    root.dataset.over = item ? item.name : "";
  }

  async function beside() {
    const item = chosen("beside");
    await screens.beside(item && (await askBytes(address("item", item))), item && name(item), item && item.title);
    root.dataset.beside = item ? item.name : "";
  }

  const step = (by) => {
    byId("item").selectedIndex += by;
    show().catch(failed);
  };
  byId("item").addEventListener("change", () => show().catch(failed));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("overlay")?.addEventListener("change", () => overlay().catch(failed));
  byId("beside").addEventListener("change", () => beside().catch(failed));
  await show();
}

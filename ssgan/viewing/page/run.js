// The controls of a run: which volume its generator makes, and what lies near it.
import { ask, askBytes, askJson, byId, failed, make, say, slider } from "./view.js";

const FRAMES = 24; // of the film from one seed to another
const FRAME_MILLISECONDS = 80; // at least
const POLL_MILLISECONDS = 3000;
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)} sd`;

function controls(about, changed) {
  const number = (id, value) => make("input", { type: "number", id, min: 0, max: about.max_seed, step: 1, value });
  const labelled = (text, input) => make("label", {}, text, " ", input);
  const volume = make("fieldset", {}, make("legend", {}, "Volume"),
    make("p", {}, labelled("Seed", number("seed", 0)), make("button", { type: "button", id: "seed-random" }, "Any seed")),
    slider("truncation", "Truncation", { min: 0, max: 1, step: 0.05, value: 1 }, (v) => v.toFixed(2), changed));
  if (about.classes.length) {
    const options = about.classes.map((name, i) => make("option", { value: i }, name));
    volume.append(make("p", {}, make("label", { htmlFor: "class" }, "Class"), make("select", { id: "class" }, ...options)));
  }
  volume.append(make("p", {}, labelled("Noise", make("input", { type: "checkbox", id: "noise", checked: true }))));
  const film = make("fieldset", {}, make("legend", {}, "Film to another seed"),
    make("p", {}, labelled("To seed", number("to", 1)), make("button", { type: "button", id: "play" }, "Play")),
    slider("at", "Way", { min: 0, max: 1, step: 1 / FRAMES, value: 0 }, percent, changed));
  const levels = about.levels.map((size, k) => make("p", {},
    labelled(`Level ${k}, ${size}`, make("input", { type: "checkbox", id: `level-${k}`, className: "level" }))));
  const mixing = make("fieldset", {}, make("legend", {}, "Style mixing"),
    make("p", {}, labelled("Styles from seed", number("mix", 1))), ...levels);
  const directions = make("fieldset", { id: "directions" }, make("legend", {}, "Principal directions of w"),
    make("p", { className: "note" }, "Finding them …"));
  const keep = make("fieldset", {}, make("legend", {}, "Keep and compare"),
    make("p", {}, make("a", { id: "save", className: "button", download: "" }, "Save NIfTI"),
      make("button", { type: "button", id: "copy" }, "Copy the command")),
    make("p", {}, make("input", { id: "command", readOnly: true, ariaLabel: "command that makes this volume" })),
    make("p", {}, make("label", { htmlFor: "beside" }, "Beside it"), make("select", { id: "beside" },
      make("option", { value: "" }, "nothing"), make("option", { value: "nearest" }, "nearest training volume"))),
    make("p", {}, make("button", { type: "button", id: "pin" }, "Show this volume beside the next")));
  const near = make("fieldset", {}, make("legend", {}, "Nearest training volumes"),
    make("p", { id: "near-note", className: "note" }, about.no_training), make("ol", { id: "near", className: "near" }));
  byId("own").append(volume, film, mixing, directions, keep, near);
}

function showDirections(shares, changed) {
  const range = { min: -4, max: 4, step: 0.1, value: 0 };
  const sliders = shares.map((share, k) => {
    const label = `Direction ${k + 1}, ${percent(share)} of the variance`;
    const row = slider(`direction-${k + 1}`, label, range, signed, changed);
    row.classList.add("long");
    row.querySelector("input").className = "direction";
    return row;
  });
  const reset = make("button", { type: "button", id: "directions-reset" }, "Back to 0");
  reset.addEventListener("click", () => {
    for (const input of document.querySelectorAll(".direction")) { input.value = 0; input.refresh(); }
    changed();
  });
  byId("directions").replaceChildren(byId("directions").firstElementChild, ...sliders, make("p", {}, reset));
}

// The point of the latent space that the controls name, as the query of an address.
function query() {
  const values = new URLSearchParams({ seed: byId("seed").value, truncation: byId("truncation").value });
  values.set("noise", byId("noise").checked ? "const" : "none");
  if (byId("class")) values.set("class", byId("class").value);
  if (Number(byId("at").value) > 0) {
    values.set("to", byId("to").value);
    values.set("at", byId("at").value);
  }
  const levels = [...document.querySelectorAll(".level")].flatMap((box, k) => (box.checked ? [k] : []));
  if (levels.length) {
    values.set("mix", byId("mix").value);
    values.set("levels", levels.join());
  }
  const inputs = [...document.querySelectorAll(".direction")];
  const moves = inputs.flatMap((input, k) => (Number(input.value) ? [`${k + 1}:${input.value}`] : []));
  if (moves.length) values.set("moves", moves.join());
  return values.toString();
}

// What a query's volume is called.
function named(asked) {
  const values = new URLSearchParams(asked);
  const changes = [values.has("at") && `on the way to ${values.get("to")}`, values.has("mix") && "mixed", values.has("moves") && "moved"];
  return [`seed ${values.get("seed")}`, ...changes.filter(Boolean)].join(", ");
}

export async function startRun(about, screens) {
  const root = document.documentElement;
  let wanted = null, working = false, playing = false, checkpoint = about.state.checkpoint, nearTimer = 0;

  // Shows the newest volume that was asked for; those asked for in between are left out.
  async function update() {
    wanted = query();
    if (working || checkpoint === null) return;
    working = true;
    try {
      while (wanted !== null) {
        const asked = wanted;
        wanted = null;
        const buffer = await askBytes(`volume?${asked}`);
        await screens.show(buffer, "generated.nii", `generated, ${named(asked)}`);
        byId("save").href = `save?${asked}`;
        root.dataset.shown = asked;
      }
    } catch (error) {
      failed(error);
    } finally {
      working = false;
    }
    clearTimeout(nearTimer);
    if (!playing) nearTimer = setTimeout(() => after().catch(failed), 200);
  }

  // What takes longer than the picture: the command and the nearest training volumes.
  async function after() {
    const asked = query();
    byId("command").value = (await askJson(`command?${asked}`)) || "no command writes volumes of the 2D stage";
    byId("copy").disabled = byId("command").value.startsWith("no command");
    if (!about.training) return;
    if (!byId("near").children.length) byId("near-note").textContent = "Reading the training volumes …";
    const found = await askJson(`nearest?${asked}`);
    const usual = `Among themselves, training volumes are ${found.median.toFixed(3)} apart (median of the nearest).`;
    const copy = found.nearest[0].distance < found.low ? " This one is nearer than nearly all of them: look for a copy." : "";
    byId("near-note").textContent = usual + copy;
    byId("near").replaceChildren(...found.nearest.map(({ index, source, distance }) => {
      const text = `${distance.toFixed(3)}: volume ${index}, ${source}`;
      const button = make("button", { type: "button" }, text);
      button.dataset.index = index;
      button.addEventListener("click", () => training(index, text).catch(failed));
      return make("li", {}, button);
    }));
    if (byId("beside").value === "nearest") await training(found.nearest[0].index, byId("near").firstChild.textContent, true);
    root.dataset.near = asked;
  }

  async function training(index, text, follows = false) {
    if (!follows) choose(`training volume ${index}`);
    await screens.beside(await askBytes(`item/${index}`), "training.nii", `training volume, ${text}`);
    root.dataset.beside = text;
  }

  // Makes a choice of its own of what is shown beside.
  function choose(text) {
    const select = byId("beside");
    while (select.options.length > 2) select.remove(2);
    select.append(make("option", { value: "kept", selected: true }, text));
  }

  controls(about, update);
  screens.window = about.window;
  for (const id of ["seed", "to", "mix"]) byId(id).addEventListener("input", () => byId(id).value !== "" && update());
  for (const id of ["noise", "class"]) byId(id)?.addEventListener("change", update);
  byId("class")?.addEventListener("change", () => findDirections().catch(failed));
  for (const box of document.querySelectorAll(".level")) box.addEventListener("change", update);
  byId("seed-random").addEventListener("click", () => {
    byId("seed").value = Math.floor(Math.random() * 2 ** 32);
    update();
  });
  byId("play").addEventListener("click", () => (playing ? (playing = false) : play().catch(failed)));
  byId("copy").addEventListener("click", async () => {
    byId("command").select();
    await navigator.clipboard.writeText(byId("command").value);
    byId("copy").textContent = "Copied";
    setTimeout(() => { byId("copy").textContent = "Copy the command"; }, 1500);
  });
  byId("pin").addEventListener("click", async () => {
    const asked = query(), title = `kept: ${named(asked)}`;
    choose(title);
    await screens.beside(await askBytes(`volume?${asked}`), "kept.nii", title);
    root.dataset.beside = title;
  });
  byId("beside").addEventListener("change", async () => {
    if (byId("beside").value === "") {
      await screens.beside(null);
      root.dataset.beside = "";
    } else await after();
  });

  // Goes to the other seed and stays there; again: from the start.
  async function play() {
    playing = true;
    byId("play").textContent = "Stop";
    const at = byId("at");
    if (Number(at.value) >= 1) at.value = 0;
    while (playing && Number(at.value) < 1) {
      const begun = performance.now();
      at.value = Math.min(1, Number(at.value) + 1 / FRAMES);
      at.refresh();
      await update();
      while (working) await new Promise((resolve) => setTimeout(resolve, 10));
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, begun + FRAME_MILLISECONDS - performance.now())));
    }
    playing = false;
    byId("play").textContent = "Play";
    await after();
  }

  async function findDirections() {
    const name = byId("class") ? `?class=${byId("class").value}` : "";
    const before = [...document.querySelectorAll(".direction")].map((input) => input.value);
    showDirections(await askJson(`directions${name}`), update);
    document.querySelectorAll(".direction").forEach((input, k) => { input.value = before[k] ?? 0; input.refresh(); });
  }

  function sayState(state) {
    const from = state.checkpoint === null ? "" : `checkpoint ${state.name}, after ${state.seen}`;
    const slices = state.stage === "2d" ? "; stage 2d: every slice by itself" : "";
    say([from + slices, state.trouble].filter(Boolean).join(". "), Boolean(state.trouble));
  }

  // Follows the newest checkpoint of a run that is still training.
  async function poll() {
    try {
      const state = await askJson("state");
      sayState(state);
      if (state.checkpoint !== checkpoint) {
        if (checkpoint === null) return location.reload(); // now the levels are known
        checkpoint = state.checkpoint;
        await update();
        await findDirections();
      }
    } catch (error) {
      failed(error);
    }
    setTimeout(poll, POLL_MILLISECONDS);
  }

  sayState(about.state);
  setTimeout(poll, POLL_MILLISECONDS);
  if (checkpoint === null) return;
  await update();
  await findDirections();
}

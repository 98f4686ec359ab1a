"""Times `ssgan view` from a slider's move to the picture, in a headless Chromium that draws on the CPU.

    python -m benchmarks.viewer [--presets demo hippocampus] [--repeats 20] [--threads 2] [--out FILE.jsonl]

For each preset a run of one step is trained on phantoms of the preset's shape: how long a volume takes does not depend
on its weights. The page is 1280 x 720, with three planes and 3D. A time begins with the input event of the truncation
slider and ends when a pixel of the drawn picture has been read back, so that what was queued for drawing is done; the
server's share is the time from the request to the last byte of the volume. It needs Chromium and chromedriver.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.operator.run import environment
from ssconv.parser import Parser
from ssgan.config.presets import PRESETS
from ssgan.utils.cores import use_threads
from ssgan.utils.environment import pick_device
from ssgan.viewing.exploring import RunExplorer
from ssgan.viewing.server import Server
from tests.support.browser import CHROMIUM, DRIVER, REASON, Browser

SIZE = (1280, 720)
WARM_UP = 3
# Moves the slider to a value of its own each time, so that no volume is in memory, and compares what is shown last.
SCRIPT = """const [values] = arguments, root = document.documentElement, slider = document.getElementById("truncation");
const gl = document.querySelector("#first canvas").getContext("webgl2"), times = [];
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
slider.step = "any";
for (const value of values) {
  await pause(600); // the nearest training volumes of the one before are found
  const begun = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  while (!root.dataset.shown.includes(`truncation=${value}&`)) await pause(1);
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  const whole = performance.now() - begun;
  const asked = performance.getEntriesByType("resource").filter((e) => e.name.includes(`truncation=${value}&`))
    .filter((e) => e.name.includes("/volume?")).at(-1);
  times.push([whole, asked.responseEnd - asked.startTime]);
  performance.clearResourceTimings();
}
return times;"""


def make_run(preset: str, folder: Path) -> Path:
    """Trains the 3D networks of a preset for one step."""
    run, kimg = folder / preset, PRESETS[preset].stage_3d.batch / 1000
    command = [sys.executable, "-m", "ssgan.train", "--preset", preset, "--stage", "3d", "--inflate", "none"]
    subprocess.run([*command, "--kimg-3d", str(kimg), "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
    return run


def measure(run: Path, folder: Path, repeats: int) -> np.ndarray:
    """Seconds of each move: (repeats, 2), the whole and the server's share."""
    server = Server(RunExplorer(run, None, None, pick_device("cpu")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(folder, SIZE)
    try:
        browser.resize(*SIZE)
        browser.open(server.address)
        browser.wait("document.documentElement.dataset.near", 300)
        values = [round(0.01 * (k + 1), 2) for k in range(WARM_UP + repeats)]
        found = [browser.run(SCRIPT, [value])[0] for value in values]
        if browser.run("return document.documentElement.dataset.errors") != "0":
            raise SystemExit(browser.run("return document.getElementById('status').textContent"))
    finally:
        browser.close()
        server.shutdown()
        server.server_close()
    return np.array(found[WARM_UP:]) / 1000


def row(preset: str, seconds: np.ndarray) -> dict[str, Any]:
    """Quantiles of the whole and of the server's share."""
    named = {}
    for name, column in (("slider_to_picture", seconds[:, 0]), ("server", seconds[:, 1])):
        named[name] = {f"q{q}": round(float(np.quantile(column, q / 100)), 4) for q in (10, 50, 90)}
    return {"preset": preset, "shape": list(PRESETS[preset].shape), "repeats": len(seconds), "seconds": named}


def line(found: dict[str, Any]) -> str:
    """A row as text."""
    (whole, server), shape = found["seconds"].values(), "x".join(map(str, found["shape"]))
    low, middle, high = (f"{1000 * whole[q]:.0f}" for q in ("q10", "q50", "q90"))
    return (
        f"{found['preset']} {shape}: slider to picture {middle} ms (10 to 90 %: {low} to {high}), of which the server "
        f"{1000 * server['q50']:.0f} ms"
    )


def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["demo", "hippocampus"], choices=list(PRESETS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of the generator (default: as many as `ssgan view` takes)")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each preset, are appended")
    args = parser.parse_args()
    if CHROMIUM is None or DRIVER is None:
        raise SystemExit(REASON)
    use_threads(args.threads)
    about = environment()
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            run = make_run(preset, Path(folder))
            (Path(folder) / "browser").mkdir()
            found = row(preset, measure(run, Path(folder) / "browser", args.repeats)) | {"environment": about}
        print(line(found), flush=True)
        if args.out is not None:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

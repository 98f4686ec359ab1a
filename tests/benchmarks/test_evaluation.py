"""The benchmark of `ssgan evaluate`: stopwatches that change nothing, parts that add up, a line and a table."""

import json

import pytest

from benchmarks.metrics import evaluation
from ssgan import evaluate
from ssgan.metrics import distances


def test_a_line_and_a_table(tmp_path, capsys):
    """Run as the user runs it, at a size that takes a moment; the parts and the rest add up to the whole."""
    small = ["--count", "12", "--shape", "8", "8", "8", "--threads", "1", "--repeats", "1"]
    assert evaluation.main([*small, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.jsonl")
    record = json.loads(file.read_text())
    assert (record["count"], record["shape"], record["threads"]) == (12, [8, 8, 8], 1)
    assert set(record["parts"]) == {*evaluation.PARTS.values(), evaluation.OWN}
    medians = {part: median for part, (_, median, _) in record["parts"].items()}
    assert sum(medians.values()) == pytest.approx(record["seconds"][1]) and min(medians.values()) > 0
    assert "12 against 12 volumes" in record["protocol"] and {"commit", "device", "torch", "scipy"} <= set(record)
    page = file.with_suffix(".md").read_text()
    assert "## 12 against 12 volumes of 8x8x8, 1 threads" in page and "| MS-SSIM |" in page
    assert page.strip() in capsys.readouterr().out


def test_stopwatches_measure_and_are_taken_off_again(tmp_path, capsys):
    own = distances.prdc
    with pytest.raises(SystemExit):
        evaluation.parts_of(["--real", str(tmp_path), "--fake", str(tmp_path), "--out", str(tmp_path / "m.json")])
    assert "no NIfTI files" in capsys.readouterr().err
    assert distances.prdc is own and all("timed" not in repr(f) for f in (evaluate.load_source, distances.frechet))
    seconds = {"sum": 1.0}
    assert evaluation.stopwatch(sum, seconds, "sum")([1, 2]) == 3 and seconds["sum"] > 1
    slow = {"device": "d", "cores": 2, "python": "3", "torch": "2", "numpy": "2", "scipy": "1", "commit": "c"}
    slow |= {"date": "2026-01-01T00", "count": 2, "shape": [1, 1, 1], "threads": 2, "repeats": 1, "limit": 180.0}
    text = evaluation.table(slow | {"seconds": [181.0] * 3, "parts": {"KID": [1.0] * 3}, "protocol": "p"})
    assert "NOT within the 180 s" in text and "| KID | 1.00 | 1% |" in text

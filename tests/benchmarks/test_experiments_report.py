"""benchmarks.experiments: the file of results, and the arithmetic of the report on curves made by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks.experiments import grids, report, results, step_times
from tests.support.experiment_stand_ins import TINY

# ---- the file of results ----


def test_half_a_last_line_is_left_out_and_said(tmp_path, capsys):
    path, record = tmp_path / "x.jsonl", {"cell": "c", "protocol": "p", "seed": 0}
    path.write_text(json.dumps(record) + '\n{"cell": "d", "prot')
    assert [results.load(path) for _ in range(2)] == [[record]] * 2
    assert capsys.readouterr().err == f"note: the last line of {path} is half a record and left out\n"
    results.append(path, record)
    assert results.load(path) == [record, record]
    path.write_text("half\n" + json.dumps(record) + "\n")
    with pytest.raises(results.ResultsError, match=r"x\.jsonl, line 1 is no record of a cell"):
        results.load(path)


def test_a_damaged_file_of_results_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"cell": "a"}\n{"cell": "a", "protocol": "p", "seed": 0}\n')
    with pytest.raises(results.ResultsError, match="line 1 is no record of a cell"):
        results.load(path)


# ---- the report ----


def curve(*rows):
    """(volumes, seconds_2d, seconds_3d, frechet_held) each."""
    names = ("volumes", "seconds_2d", "seconds_3d", "frechet_held")
    return {"points": [dict(zip(names, r, strict=True)) | {"shown": r[0] + (4 if r[1] else 0)} for r in rows]}


def test_time_to_the_baselines_best_by_hand():
    baseline = curve((0, 0, 0, 90), (10, 0, 100, 20), (20, 0, 200, 10), (30, 0, 300, 12))
    quick = curve((0, 30, 0, 40), (10, 30, 50, 9.5), (20, 30, 100, 3))
    at = report.reach(quick, baseline)
    assert at == {"time": pytest.approx(80 / 200), "time_3d": pytest.approx(50 / 200), "shown": pytest.approx(14 / 20)}
    assert report.reach(curve((0, 30, 0, 40), (10, 30, 50, 10.1)), baseline) is None
    assert report.reach(quick, curve((0, 0, 0, 5), (10, 0, 100, 20))) is None  # never better than its start


def test_what_every_cell_had_reached_at_equal_time_by_hand():
    baseline = [curve((0, 0, 0, 90), (10, 0, 100, 20), (20, 0, 200, 10)), curve((0, 0, 0, 80), (10, 0, 200, 30))]
    quick = curve((0, 60, 0, 40), (10, 60, 30, 9.5), (20, 60, 60, 3))
    assert [report.after(quick, s) for s in (59, 60, 90, 119, 1000)] == [None, 40, 9.5, 9.5, 3]
    table = {report.BASELINE: dict(enumerate(baseline)), "quick": {0: quick}, "not run": {}}
    text = report._equal_time(table, table[report.BASELINE])
    assert text[2].startswith("| cell | 25.0% (50 s) | 37.5% (75 s) | 50.0% (100 s) |")
    assert text[4] == (
        "| dense, scratch | 85 (80 to 90) | 85 (80 to 90) | 50 (20 to 80) | 50 (20 to 80) | 50 (20 to 80) "
        "| 20 (10 to 30) |"
    )
    assert text[5] == "| quick | – | 40 | 9.5 | 3 | 3 | 3 |" and len(text) == 7
    other = report._equal_time({"quick": {0: quick}}, table[report.BASELINE])
    assert other == text, "the baseline stands there in a grid that has it not"
    assert report._equal_time({report.BASELINE: {}, "quick": {0: quick}}, {}) == []


def test_the_protocol_of_the_most_cells_is_reported_and_a_grids_own_pace():
    rows = [("a", "x"), ("b", "x"), ("trial", "y"), ("trial", "y"), ("failed", "z"), ("failed2", "z"), ("failed3", "z")]
    records = [{"cell": c, "protocol": p} | ({"error": "E"} if p == "z" else {}) for c, p in rows]
    assert results.main_protocol(records) == "x"
    assert results.main_protocol(records[:1] + records[2:3]) == "y", "the later of equals"
    assert results.main_protocol(records[2:3] + records[:1]) == "x"
    cells = grids.cells("C", TINY, TINY.shape, [0])
    names = list(step_times.kinds(cells))
    assert len(names) == 2 * len(cells) and step_times.kinds(cells)[names[0]][0] is cells[0]
    older, other, newer = ({"pace": dict.fromkeys(k, n)} for n, k in enumerate((names, [*names[:3], "else"], names)))
    assert (
        step_times.most_complete([older, other], cells) is older
        and step_times.most_complete([older, newer, other], cells) is newer
    )
    assert step_times.most_complete([], cells) is None
    about = {"environment": {"date": "2026-01-02T", "commit": "c0"}, "command": "it", "pace": dict.fromkeys(names[2:])}
    told = "by steps timed in turns, 2026-01-02 at commit c0 (`it`)"
    assert report._timing(about, cells[1:]) == told
    assert report._timing(about, cells) == f"{told}, but by the median row of the log of {cells[0].label}"
    assert report._timing(None, cells) == "by the median row of the log"


def test_other_features_have_a_table_of_their_own():
    entry = {"protocol": "deepbet v1", "floors": {"frechet_held": 1.2, "recall": 0.9}}
    rows = [{"other_features": {"deepbet": entry | {"final": {"frechet_held": f, "recall": 0.5}}}} for f in (2.0, 4.0)]
    lines = report._other_features({"quick": dict(enumerate(rows)), "before": {0: {"final": {}}}})
    assert lines == [
        "The same with other features; a conclusion stands only where both agree. deepbet v1.",
        "",
        "| cell | seeds | frechet_held, deepbet | recall, deepbet |",
        "|---|---|---|---|",
        "| quick | 0, 1 | 3 (2 to 4) | 0.5 (0.5 to 0.5) |",
        "| real volumes (floor) | – | 1.2 | 0.9 |",
        "",
    ]
    assert report._other_features({"before": {0: {"final": {}, "other_features": {}}}}) == []


def test_the_plots_curve_is_the_seeds_mean_where_all_have_points():
    rows = [curve((0, 0, 0, 90), (10, 0, 1, 4), (20, 0, 2, 2)), curve((0, 0, 0, 10), (10, 0, 1, 9))]
    shown, means = report.mean_curve(rows)
    assert shown == [0, 10] and means == [pytest.approx(30), pytest.approx(6)]


def test_means_have_their_range():
    assert report.spread([]) == "–" and report.spread([0.12345]) == "0.123"
    assert report.spread([1.0, 2.0, 6.0]) == "3 (1 to 6)"

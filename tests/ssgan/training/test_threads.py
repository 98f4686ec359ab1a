"""The number of threads of a run is the fastest of measured steps, watched and recorded; here no second is real."""

import json

import pytest
import torch

from ssgan import train as command
from ssgan.data.phantom import write_phantom_dataset
from ssgan.reporting import curves
from ssgan.runs import checkpoint
from ssgan.training import loop, threads
from ssgan.training.run import Run
from ssgan.training.threads import WINDOW, Threads
from tests.support.tiny_runs import CONFIG, SHAPE


@pytest.fixture(autouse=True)
def own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path):
    return write_phantom_dataset(tmp_path / "data", count=6, shape=SHAPE, seed=1)


class Machine:
    """Stands in for the clock: a step with n threads takes seconds[n]; `tried` has the numbers in their order."""

    def __init__(self, seconds):
        self.seconds, self.tried = seconds, []

    def __call__(self):
        def seconds(run, stage, count):
            self.tried.append(count)
            return self.seconds[count]

        return seconds


class Log:
    """What `Threads` needs of a run."""

    def __init__(self):
        self.log, self.rows, self.said = self, [], []
        self.seconds, self.append, self.echo = 7.0, self.rows.append, self.said.append


class Trainer:
    stage, step, images = "2d", 4, 32


CHOICES = {
    "alone": ({6: 1.0, 4: 1.3}, 6, [6, 4]),
    "beside a busy process": ({6: 9.0, 4: 2.0, 2: 1.0, 1: 1.5}, 2, [6, 4, 2, 1]),
    "one is best": ({6: 9.0, 4: 4.0, 2: 2.0, 1: 0.5}, 1, [6, 4, 2, 1]),
}


@pytest.mark.parametrize(("seconds", "expected", "tried"), CHOICES.values(), ids=CHOICES)
def test_the_fastest_number_is_taken(seconds, expected, tried):
    run, machine = Log(), Machine(seconds)
    Threads(6, measure=machine).begin(run, Trainer)
    assert machine.tried == tried and torch.get_num_threads() == expected
    assert run.rows == [
        {"event": "threads", "stage": "2d", "step": 4, "images": 32, "seconds": 7.0}
        | {"threads": expected, "usable_cores": 6}
    ]


def test_the_choice_is_said_in_one_line():
    run = Log()
    Threads(2, measure=Machine({2: 0.27, 1: 0.41})).begin(run, Trainer)
    assert run.said == ["threads: 2 of 2 (1: 0.41 s a step, 2: 0.27 s); --threads N sets it"]


@pytest.mark.parametrize(("usable", "expected"), [(1, [1]), (2, [2, 1]), (7, [7, 4, 2, 1]), (8, [8, 4, 2, 1])])
def test_powers_of_two_are_tried(usable, expected):
    assert threads.numbers(usable) == expected


def test_a_resumed_stage_keeps_its_number_on_as_many_cores():
    run, busy = Log(), Machine({4: 5.0, 2: 1.0, 1: 2.0})
    Threads(4, measure=busy).begin(run, Trainer)
    again = Machine({})
    Threads(4, measure=again).begin(run, Trainer)
    assert torch.get_num_threads() == 2 and not again.tried and len(run.rows) == 1
    assert run.said[1:] == ["threads: 2 of 4, as before in this stage; --threads N sets it"]
    fewer = Machine({3: 1.0, 2: 2.0})
    Threads(3, measure=fewer).begin(run, Trainer)
    assert torch.get_num_threads() == 3 and fewer.tried and len(run.rows) == 2, "other cores: measured again"


def test_a_given_number_is_neither_measured_nor_changed_but_recorded():
    run, machine = Log(), Machine({})
    given = Threads(2, given=5, measure=machine)
    given.begin(run, Trainer)
    for seconds in (1.0,) * WINDOW + (50.0,) * 3 * WINDOW:
        given.after_step(run, Trainer, seconds)
    assert torch.get_num_threads() == 5 and not machine.tried and not run.said
    Threads(2, measure=machine).begin(run, Trainer)
    assert torch.get_num_threads() == 5 and not machine.tried, "a resumed run keeps it"


def test_a_single_core_measures_nothing():
    run, machine = Log(), Machine({})
    alone = Threads(1, measure=machine)
    alone.begin(run, Trainer)
    for seconds in (1.0,) * WINDOW + (50.0,) * 3 * WINDOW:
        alone.after_step(run, Trainer, seconds)
    assert torch.get_num_threads() == 1 and not machine.tried and not run.said and not run.rows


def test_steps_that_grow_several_times_slower_are_measured_again_once():
    run, machine = Log(), Machine({2: 0.3, 1: 0.4})
    watched = Threads(2, measure=machine)
    watched.begin(run, Trainer)
    usual = [0.9] + [0.3] * (WINDOW - 1)  # the first step is slow
    single = [9.0, 0.3, 0.3, 0.3] * WINDOW  # path length, a snapshot: single steps
    slower = [0.8] * 2 * WINDOW
    for seconds in usual + single + slower:
        watched.after_step(run, Trainer, seconds)
    assert len(run.said) == 1, "outliers and 2.7 times the time are no reason"
    machine.seconds = {2: 6.0, 1: 0.5}
    for seconds in [6.0] * (WINDOW // 2 + 1):
        watched.after_step(run, Trainer, seconds)
    assert torch.get_num_threads() == 1
    assert run.said[1:] == [
        "a step takes 3.4 s instead of 0.3 s; threads: 1 of 2 (1: 0.5 s a step, 2: 6 s); --threads N sets it"
    ]
    for seconds in [0.5] * 3 * WINDOW:
        watched.after_step(run, Trainer, seconds)
    assert len(run.said) == 2 and [row["threads"] for row in run.rows] == [2, 1]


def test_a_run_has_the_bits_of_its_number_wherever_it_comes_from(data, tmp_path):
    """Chosen, given and resumed; measured steps leave no trace in weights and optimisers."""

    def measure():
        real = threads.step_time()

        def seconds(run, stage, count):
            real(run, stage, count)
            return {2: 1.0, 1: 0.25}[count]

        return seconds

    def go(name, choice, **changes):
        options = {"progress": False, "echo": lambda text: None, "threads": choice}
        assert loop.train(CONFIG, data, tmp_path / name, **options, **changes) == 0
        return checkpoint.load(checkpoint.final_path(tmp_path / name / "checkpoints", "3d"))[0]

    chosen, given = go("chosen", Threads(2, measure=measure)), go("given", Threads(2, given=1))
    assert chosen.keys() == given.keys() and all(torch.equal(chosen[name], given[name]) for name in given)


def test_measured_steps_are_of_the_stage_and_the_number(data, tmp_path, monkeypatch):
    made, steps = [], []

    class Spy:
        step = 0

        def train_step(self, images, condition):
            steps.append((self.step, torch.get_num_threads(), tuple(images.shape)))

    monkeypatch.setattr(threads, "empty_batch", lambda trainer: (torch.zeros(4, 1, *SHAPE), None))
    monkeypatch.setattr(Run, "new_trainer", lambda self, stage: made.append(stage) or Spy())
    clock = iter([0, 100, 100, 103, 103, 105])  # the first step, with fresh memory, does not count
    monkeypatch.setattr(threads.time, "perf_counter", lambda: next(clock))
    run = Run.__new__(Run)
    assert threads.step_time()(run, "3d", 2) == 2
    assert made == ["3d"] and steps == [(1, 2, (4, 1, *SHAPE))] * 3


def test_the_command_chooses_and_a_stage_keeps_the_choice(data, tmp_path, monkeypatch, capsys):
    measured = []

    def measure():
        def seconds(run, stage, count):
            measured.append((stage, count))
            return {("2d", 2): 1.0, ("2d", 1): 0.5, ("3d", 2): 0.5, ("3d", 1): 1.0}[stage, count]

        return seconds

    monkeypatch.setattr(command, "use_threads", lambda threads=None, processes=1: threads or 2)
    monkeypatch.setattr(command, "Threads", lambda usable, given: Threads(usable, given, measure=measure))
    out = tmp_path / "run"
    words = ["--data", str(data.path), "--out", str(out), "--kimg-2d", "0.008", "--batch-2d", "4", "--batch-3d", "4"]
    words += ["--no-progress", "--device", "cpu", "--mbstd-group", "2"]
    assert command.main([*words, "--kimg-3d", "0.004"]) == 0
    assert measured == [("2d", 2), ("2d", 1), ("3d", 2), ("3d", 1)]
    assert "threads: 1 of 2 (1: 0.5 s a step, 2: 1 s); --threads N sets it" in capsys.readouterr().out
    assert command.main([*words, "--kimg-3d", "0.008"]) == 0
    assert len(measured) == 4 and "threads: 2 of 2, as before in this stage" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    found = [(r["stage"], r["step"], r["threads"], r["usable_cores"]) for r in rows if r.get("event") == "threads"]
    assert found == [("2d", 0, 1, 2), ("3d", 0, 2, 2)]
    assert {"threads", "usable_cores"} <= curves.NOT_CURVES

"""The fastest right candidate serves each kind of call, and nothing else ever: stand-ins on the CPU."""

from __future__ import annotations

import json
import os
import warnings
from types import SimpleNamespace

import pytest
import torch

import ssconv
from ssconv.backend import cache, choice, dispatch, families, reference, trust
from ssconv.spec import KERNEL_SETS, Epilogue, Geometry
from tests.support.strategies import CONV_CASES, check_forward, check_gradients

CPU = torch.device("cpu")
SPLIT = KERNEL_SETS["split_depth"]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """The stand-ins as the families of the CPU, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "PROVIDER", "tests.support.stand_in_families")
    monkeypatch.setattr(families, "NAMES", ("right", "slow", "wrong_when_large", "wrong", "raises"))
    choice.forget()
    before, torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.conv.fp32_precision, "ieee"
    torch.use_deterministic_algorithms(False)  # which the other tests set, for NaN in uninitialised memory
    yield lambda *names: monkeypatch.setenv("STAND_INS", ",".join(names))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.conv.fp32_precision = before
    choice.forget()


@pytest.fixture
def trusting(monkeypatch, stand_ins):
    """Stand-ins that are trusted without a check."""

    def trust_them(*names: str) -> None:
        stand_ins(*names)
        monkeypatch.setattr(trust, "trusted", lambda device, asked: set(asked))

    return trust_them


def call(channels: int = 4, size: tuple[int, ...] = (3, 4, 5), dtype: torch.dtype = torch.float32):
    """Arguments of `convolve`."""
    x = torch.randn(2, 2 * channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    weights = [torch.randn(channels, channels, *k, dtype=dtype) for k in SPLIT]
    return (
        x,
        weights,
        torch.randn(2 * channels, dtype=dtype),
        None,
        None,
        None,
        Geometry(SPLIT),
        Epilogue(2, 0.2),
        False,
    )


def served() -> dict[str, str]:
    return {kind: name for kind, name, _ in ssconv.choices()}


def test_the_slow_one_never_serves_and_the_choice_is_kept(trusting, monkeypatch):
    trusting("slow")
    args = call()
    y, _ = choice.convolve(*args)
    torch.testing.assert_close(y, reference.convolve(*args)[0])
    ((kind, name, times),) = [row for row in ssconv.choices() if row[0].startswith("convolve")]
    assert name.startswith("pytorch") and times["slow"] > 0.02 > times[name]
    assert list(times.values()) == sorted(times.values())
    assert kind == "convolve float32 8>8 3x3x3+1x3x3 stride111 same shuffle2 bias at 2x4x4x8"

    searched = []
    monkeypatch.setattr(choice, "search", lambda *args: searched.append(args))
    choice.forget()  # another process
    choice.convolve(*args)
    assert not searched, "a kind was searched twice"
    assert served()[kind] == name


def test_the_fastest_of_the_file_serves_if_it_can(trusting):
    trusting("right", "slow")
    args = call()
    kind = choice.kind_of("convolve", args)
    store = cache.Store("choices", cache.identity(CPU))
    store.save({kind: {"slow": 1e-6, "right": 1e-5, "gone": 1e-9, "pytorch": 1.0, "slow[and=wrong]": None}})
    chosen, lasting = choice._choose("convolve", args, by_table=False)
    assert (chosen.label, lasting) == ("slow", True)


def test_a_family_that_was_not_there_is_measured_and_a_bad_one_once(trusting, monkeypatch):
    """A file of a time when other families were trusted or left out does not keep a new one from serving."""
    args = call()
    trusting("slow")
    choice.convolve(*args)
    trusting("slow", "right", "raises")
    choice.forget()
    with pytest.warns(RuntimeWarning, match="raises does not run"):
        choice.convolve(*args)
    (times,) = [times for kind, _, times in ssconv.choices() if kind.startswith("convolve")]
    assert "right" in times and "raises" not in times
    monkeypatch.setattr(choice, "search", lambda *args: pytest.fail("searched again"))
    choice.forget()
    choice.convolve(*args)


def test_a_wrong_result_on_the_calls_own_tensors_does_not_serve(trusting):
    """Right in every small check and wrong at a size that none of them has: an index that overflows, say."""
    trusting("wrong_when_large")
    small, large = call(size=(3, 4, 5)), call(size=(16, 17, 18))
    choice.convolve(*small)
    with pytest.warns(RuntimeWarning, match=r"wrong_when_large differs from PyTorch by .* of the norm for convolve"):
        y, _ = choice.convolve(*large)
    torch.testing.assert_close(y, reference.convolve(*large)[0])
    assert all("wrong_when_large" not in times for kind, _, times in ssconv.choices() if "16x32x32" in kind)


def test_one_that_does_not_run_is_left_out_with_its_reason(trusting):
    trusting("raises")
    args = call()
    with pytest.warns(RuntimeWarning, match=r"raises does not run and does not serve convolve.*illegal memory access"):
        y, _ = choice.convolve(*args)
    torch.testing.assert_close(y, reference.convolve(*args)[0])


def test_an_overflow_of_float16_is_no_difference():
    """A scaled loss overflows gradients that PyTorch rounds to float16 and the kernels keep in float32."""
    expected = torch.tensor([1.0, 2.0, torch.inf, torch.nan], dtype=torch.float16)
    right = torch.tensor([1.0, 2.0, 1e6, 3.0])
    assert choice.deviation([right], [expected]) == 0
    assert choice.deviation(right * torch.tensor([1, 1.1, 1, 1]), expected) == pytest.approx(0.2 / 5**0.5, rel=1e-2)
    for bad in (torch.nan, torch.inf, -torch.inf):
        wrong = right.clone()
        wrong[0] = bad
        assert choice.deviation(wrong, expected) == torch.inf
    large = torch.full((4,), 3e38, dtype=torch.bfloat16)  # whose squares overflow
    assert choice.deviation(large.float(), large) == 0 and choice.deviation(large / 2, large) == pytest.approx(0.5)


def test_no_room_for_a_candidate(trusting, monkeypatch):
    trusting("has_no_room", "right")
    monkeypatch.setattr(families, "NAMES", ("has_no_room", "right"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice.convolve(*call())
    (times,) = [times for kind, _, times in ssconv.choices() if kind.startswith("convolve")]
    assert "has_no_room" not in times and "right" in times

    def no_room(*args):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(choice.pytorch, "run", no_room)  # the composition needs more than the kernels
    monkeypatch.setattr(choice.pytorch, "FAMILY", choice.pytorch.FAMILY._replace(run=no_room))
    args = call(channels=3)
    torch.testing.assert_close(choice.convolve(*args)[0], reference.convolve(*args)[0])
    assert served()[choice.kind_of("convolve", args)] == "right"


def test_the_table_alone_times_nothing(trusting, monkeypatch):
    trusting("slow", "right")
    monkeypatch.setattr(choice, "median_seconds", lambda *args: pytest.fail("something was timed"))
    args = call()
    monkeypatch.setenv("SSCONV_CHOICE", "table")
    assert choice._choose("convolve", args, choice._table_only())[0].label == "slow", "the first of the order serves"
    choice.convolve(*args)
    monkeypatch.setenv("SSCONV_CHOICE", "measure")
    torch.use_deterministic_algorithms(True)
    try:
        choice.convolve(*args)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(choice, "capturing", lambda: True)
    choice.convolve(*args)
    assert ssconv.choices() == []
    monkeypatch.setenv("SSCONV_CHOICE", "fast")
    with pytest.raises(ValueError, match=r"SSCONV_CHOICE: expected measure .* or table; got 'fast'"):
        choice.convolve(*args)


def test_families_are_left_out_by_name(trusting, monkeypatch):
    trusting("slow", "right")
    args = call()

    def found() -> list[str]:
        return [family.name for family in choice._candidates("convolve", args)]

    assert found() == ["slow", "right", "pytorch"]
    monkeypatch.setenv("SSCONV_FAMILIES", "-slow")
    assert found() == ["right", "pytorch"]
    monkeypatch.setenv("SSCONV_FAMILIES", "slow, wrong")
    assert found() == ["slow", "pytorch"]
    for value in ("fastest", "-slow,right", "-"):
        monkeypatch.setenv("SSCONV_FAMILIES", value)
        with pytest.raises(ValueError, match="SSCONV_FAMILIES: expected families to leave out"):
            choice.convolve(*args)


def test_without_a_verdict_pytorch_serves_in_its_fastest_form(stand_ins, monkeypatch):
    stand_ins("right")
    monkeypatch.setenv("SSCONV_VERIFY", "0")
    grouped = ((3, 3, 3),) * 2
    x, weights = torch.randn(1, 8, 4, 5, 6), [torch.randn(4, 4, 3, 3, 3) for _ in range(2)]
    args = (x, weights, None, None, None, None, Geometry(grouped), Epilogue(2), False)
    torch.testing.assert_close(choice.convolve(*args)[0], reference.convolve(*args)[0])
    (times,) = [times for kind, _, times in ssconv.choices() if kind.startswith("convolve")]
    assert set(times) == {
        "pytorch", "pytorch[contiguous=True]", "pytorch[grouped=True]", "pytorch[contiguous=True grouped=True]",
    }  # fmt: skip


def test_a_verdict_counts_from_the_next_call_on(stand_ins, monkeypatch):
    stand_ins("right")
    monkeypatch.setenv("SSCONV_VERIFY", "0")

    def passed(device, names, told):
        for name in names:
            told(name, trust.Verdict(trust.TRUSTED, checks=1))
        return {name: trust.Verdict(trust.TRUSTED, checks=1) for name in names}

    monkeypatch.setattr(trust, "run_checks", passed)
    args = call()
    choice.convolve(*args)
    assert "right" not in dict(ssconv.choices()[0][2])
    ssconv.verify("cpu")
    choice.convolve(*args)
    (times,) = [times for kind, _, times in ssconv.choices() if kind.startswith("convolve")]
    assert "right" in times


def test_a_search_ends_in_time(trusting, monkeypatch):
    """Configurations are tried while time is left, by a clock of the test's own."""
    trusting("right")
    now, ran = [0.0], []

    def run(operation, args, config):
        ran.append(config)
        now[0] += 0.03
        return reference.convolve(*args)

    own = choice.pytorch.FAMILY._replace(run=run)
    monkeypatch.setattr(choice.pytorch, "FAMILY", own)
    many = families.Family("right", "cuda", ("convolve",), lambda *call: iter(range(1, 1000)), run)
    monkeypatch.setattr(families, "config_label", str)
    monkeypatch.setattr(trust, "families_of", lambda device: (many,))
    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])
    choice.convolve(*call())
    assert now[0] < choice.SECONDS + 0.4, "the search goes on after its end"
    assert len(set(ran)) > 3


@pytest.mark.parametrize("name", ["split-depth-full", "transposed-stride-2", "shared-noise-negative-gain"])
def test_the_whole_operator_by_choice(stand_ins, monkeypatch, name):
    """Values and gradients through the public function, with right, slow, wrong and raising families."""
    stand_ins("right", "slow", "wrong", "raises")
    verdicts = {"right": trust.TRUSTED, "slow": trust.TRUSTED, "wrong": trust.FAILED, "raises": trust.FAILED}

    def checked(device, names, told):
        for n in names:
            told(n, trust.Verdict(verdicts[n], checks=1))
        return {n: trust.Verdict(verdicts[n], checks=1) for n in names}

    monkeypatch.setattr(trust, "run_checks", checked)
    monkeypatch.setattr(ssconv.functional, "resolve", lambda name, x: "choice")
    case = CONV_CASES[name]
    check_forward(ssconv, case, torch.float32, "auto", "cpu")
    check_gradients(ssconv, case, torch.float32, "auto", "cpu")
    operations = {kind.split()[0] for kind in served()}
    assert {"convolve", "input_grad", "weight_grad", "epilogue_backward"} <= operations
    assert not {"wrong", "raises"} & set(served().values())


def test_a_file_of_choices_is_read_whole_and_shared(trusting, tmp_path):
    trusting("right")
    choice.convolve(*call())
    (path,) = cache.folder().glob("choices-*.json")
    content = json.loads(path.read_text())
    other = cache.Store("choices", cache.identity(CPU))
    other.save({"a kind of another process": {"right": 1.0}})
    choice.convolve(*call(channels=6))
    kinds = json.loads(path.read_text())["entries"]
    assert set(content["entries"]) < set(kinds) and "a kind of another process" in kinds
    assert content["identity"] == dict(cache.identity(CPU))


def test_cards_older_than_the_compiled_kernels_are_left_to_others(monkeypatch):
    monkeypatch.setattr(dispatch, "_CUDA", SimpleNamespace(DEVICES=("cuda",)))
    for architecture, served in ((75, False), (80, True), (120, True)):
        monkeypatch.setattr(dispatch.gpu, "architecture", lambda device, found=architecture: found)
        assert dispatch.serves("cuda", torch.device("cuda")) is served
    assert not dispatch.serves("cuda", CPU)


def test_what_auto_means_on_each_device():
    x = torch.zeros(1, 2, 2, 2, 2)
    assert dispatch.resolve("auto", x) in ("cpu", "reference")
    assert dispatch.resolve("auto", x.double()) == "reference"
    assert dispatch.implementation("choice") is choice
    assert ssconv.choices() == [] and os.environ.get("SSCONV_CHOICE") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("branches", [((3, 3, 3),) * 2, SPLIT, ((3, 3, 1),)], ids=["grouped", "split", "dense"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": (2, 1, 2)}, {"transposed": True, "stride": (2, 2, 2)}, {"padding": "valid"}], ids=str
)
def test_pytorchs_own_composition_is_the_reference(branches, options, dtype, stand_ins, monkeypatch):
    """Every layout and the grouped form, of every operation, in the tensors' own dtype."""
    stand_ins("unable")
    monkeypatch.setattr(choice, "epilogue", reference.epilogue)
    geometry, count = Geometry(branches, **options), len(branches)
    x = torch.randn(2, 4 * count, 5, 6, 7, dtype=dtype)
    weights = [torch.randn(3, 4, *k, dtype=dtype) for k in branches]
    size = geometry.output_size(x.shape[2:])
    g = torch.randn(2, 3 * count, *size, dtype=dtype)
    scales = torch.rand(2, 4 * count, dtype=dtype), torch.rand(2, 3 * count, dtype=dtype)
    noise, bias = torch.randn(2, 1, *size, dtype=dtype), torch.randn(3 * count, dtype=dtype)
    calls = {
        "convolve": (x, weights, bias, *scales, noise, geometry, Epilogue(count, 0.2, 1.5, 2.0), True),
        "input_grad": (g, weights, scales[0], geometry, list(x.shape[2:])),
        "weight_grad": (g, x, scales[0], geometry),
    }
    for operation, args in calls.items():
        expected = getattr(reference, operation)(*args)
        ways = list(choice.pytorch.configs(operation, args))
        assert len(ways) == (4 if count == 2 and branches[0] == branches[1] else 2)
        for way in ways:
            found = choice.pytorch.run(operation, args, way)
            assert choice.deviation(found, expected) < (
                1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 2e-2
            )

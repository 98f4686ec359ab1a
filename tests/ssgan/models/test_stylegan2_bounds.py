"""StyleGAN2 pickles that claim more than they hold: refused with memory bounded by the file's size; and what
NVIDIA's legacy.py writes."""

import io
import pickle
import tracemalloc

import pytest
import torch

from ssgan import inflate
from ssgan.config.presets import preset
from ssgan.models import stylegan2
from ssgan.models.stylegan2 import StyleGAN2Error
from ssgan.models.stylegan2_pickle import PickleError, read
from ssgan.training.start_file import start_network
from ssgan.utils.errors import ConfigError
from tests.support import stylegan2_cases as cases


class Call:
    def __init__(self, function, *arguments):
        self.answer = function, arguments

    def __reduce__(self):
        return self.answer


def write(folder, data):
    path = folder / "network.pkl"
    path.write_bytes(data if isinstance(data, bytes) else cases.dumps(data))
    return path


@torch.no_grad()
@pytest.mark.parametrize("count", [3, 4, 6])
def test_legacy_networks_have_the_whole_batch_as_their_group(count, tmp_path):
    """legacy.py writes group_size None for networks of TensorFlow; NVIDIA's layer then takes all N samples."""
    maker = cases.Maker(group=None)
    data = maker.snapshot()
    D = stylegan2.load(write(tmp_path, data), "keep").build("D")
    x = torch.randn(count, 3, maker.resolution, maker.resolution, generator=torch.Generator().manual_seed(1))
    maker.group = count
    expected = cases.logits(maker, data["D"], x.double())
    assert float((D(x[:, :, None]).double() - expected).abs().max()) < 1e-4 * max(float(expected.abs().max()), 1)
    maker.group = 1
    assert float((D(x[:, :, None]).double() - cases.logits(maker, data["D"], x.double())).abs().max()) > 1e-3


def storage(count):
    stream = io.BytesIO()
    torch.save(torch.arange(float(count))._typed_storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_a_storage_that_is_built_again_and_again_is_refused(tmp_path):
    one = storage(100_000)
    path = write(tmp_path, pickle.dumps([Call(torch.storage._load_from_bytes, one) for _ in range(400)]))
    assert path.stat().st_size < 450_000
    tracemalloc.start()
    with pytest.raises(PickleError, match="storages together have more bytes than the file"):
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size  # 160 MB without the bound


def test_views_of_one_storage_have_no_more_elements_than_the_file(tmp_path):
    """Each view would become a weight of its own."""
    shared = torch.zeros(100_000)._typed_storage()
    views = [Call(torch._utils._rebuild_tensor_v2, shared, i, (99, 1000), (1000, 1), False, {}) for i in range(50)]
    with pytest.raises(PickleError, match="tensors together have more elements than the file has bytes"):
        read(write(tmp_path, views))
    assert len(read(write(tmp_path, views[:3]))) == 3


def test_nested_storages_are_refused(tmp_path):
    stream = storage(4)
    for _ in range(200):
        stream = pickle.dumps(Call(torch.storage._load_from_bytes, stream))
    with pytest.raises(PickleError, match="a storage within a storage"):
        read(write(tmp_path, stream))


def child(saved, names):
    for name in names.split("."):
        saved = saved.state["_modules"][name]
    return saved


class SmallNoise(cases.Maker):
    """Levels up to any resolution, with noise of 4 x 4."""

    def rand(self, *shape, **how):
        return super().rand(*(4 if n >= 64 else n for n in shape), **how)


def test_a_resolution_that_the_file_does_not_hold_takes_no_memory(tmp_path):
    """32768 pixels: the constant noise of one layer alone has 4 GB."""
    data = SmallNoise(resolution=32768, widths=(4,) * 14).snapshot()
    with pytest.raises(StyleGAN2Error, match=r"noise_const: expected \(1, 64, 64\) for our .*; got \(1, 4, 4\)"):
        stylegan2.load(write(tmp_path, data))


@pytest.mark.parametrize("shape", [(200_000, 0, 3, 3), (60_000, 4, 3, 3)], ids=str)
def test_widths_that_the_file_does_not_hold_take_no_memory(shape, tmp_path):
    """As many channels as the shape says would have weights of a terabyte; the message shows the shape."""
    data = cases.Maker().snapshot()
    weight = torch.zeros(1).expand(shape) if 0 in shape else torch.zeros(shape, dtype=torch.float16)
    for net in ("G", "G_ema"):
        child(data[net], "synthesis.b4.conv1").state["_parameters"]["weight"] = weight
    child(data["D"], "b4.conv").state["_parameters"]["weight"] = weight
    with pytest.raises(StyleGAN2Error, match=rf"got \({shape[0]}, {shape[1]}, 3, 3\)|expected \({shape[0]}|got 0"):
        stylegan2.load(write(tmp_path, data))


def test_messages_show_shapes(tmp_path):
    data = cases.Maker().snapshot()
    child(data["G"], "mapping.fc0").state["_parameters"]["weight"] = torch.zeros(5, 10)
    with pytest.raises(StyleGAN2Error, match=r"mapping\.fc0: weight: expected shape \(12, 10\); got \(5, 10\)"):
        stylegan2.load(write(tmp_path, data))
    data = cases.Maker().snapshot()
    child(data["G"], "synthesis.b8.conv0").state["_parameters"]["weight"] = torch.zeros(8, 12, 5, 5)
    with pytest.raises(StyleGAN2Error, match=r"expected \(8, 12, 1, 3, 3\) for our .*; got \(8, 12, 1, 5, 5\)"):
        stylegan2.load(write(tmp_path, data))


def test_messages_about_shapes_speak_the_order_of_the_option(tmp_path, capsys):
    """`inflate --depth`, and `train --init` of the result: --shape is X Y Z, arrays are D, H, W."""
    source, out = write(tmp_path, cases.Maker().snapshot()), tmp_path / "start.safetensors"
    assert inflate.main(["--source", str(source), "--depth", "17", "--out", str(out)]) == 2
    assert "axis D (--depth) has 17 voxels" in (err := capsys.readouterr().err) and "give another --depth" in err
    assert inflate.main(["--source", str(source), "--depth", "8", "--out", str(out)]) == 0
    assert "prepare data sets for it with --shape 16 16 8" in capsys.readouterr().out
    for slice_axis, shape, words in (
        ("axial", (16, 16, 32), "with --shape 16 16 8, this data set has 32 16 16"),
        ("coronal", (16, 32, 16), "with --shape 16 8 16, this data set has 16 16 32"),
        ("sagittal", (32, 16, 16), "with --shape 8 16 16, this data set has 32 16 16"),
    ):
        with pytest.raises(ConfigError) as caught:
            start_network(out, preset("demo").network(shape, "split_depth"), slice_axis)
        assert words in str(caught.value)

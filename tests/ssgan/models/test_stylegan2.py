"""NVIDIA's StyleGAN2-ADA pickles: our networks give the same outputs, hostile pickles are refused and not run."""

import dataclasses
import os
import pickle
import zipfile

import pytest
import torch

from ssgan import inflate, train
from ssgan.config.network import NetworkConfig
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models import stylegan2
from ssgan.models.conditioning import Condition
from ssgan.models.dense_to_split import select_weights
from ssgan.models.layers import Conv, ModulatedConv, kernel_stages
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.stylegan2_pickle import PickleError, read
from ssgan.runs import checkpoint
from ssgan.runs.inflation import select_and_inflate
from ssgan.training.start_file import start_network
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json
from tests.support import stylegan2_cases as cases


def write(path, data, protocol=4):
    path.write_bytes(data if isinstance(data, bytes) else cases.dumps(data, protocol))
    return path


def close(found, expected):
    """Compares to 1e-4 of the largest value; ours computes in float32, the oracle in float64."""
    scale = float(expected.abs().max())
    assert found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) < 1e-4 * max(scale, 1.0)


MAKERS = {
    "16": {},
    "32, clamped": {"resolution": 32, "widths": (8, 8, 4, 4), "clamp": 1.5, "group": 2, "layers": 3},
    "three classes": {"c_dim": 3, "label_layers": 2},
    "grey, one level": {"resolution": 8, "widths": (8, 4), "channels": 1},
}


@pytest.fixture(params=MAKERS, scope="module")
def published(request, tmp_path_factory):
    maker = cases.Maker(**MAKERS[request.param])
    data = maker.snapshot()
    return maker, data, write(tmp_path_factory.mktemp("pickles") / "network-snapshot.pkl", data)


def inputs(maker):
    generator = torch.Generator().manual_seed(9)
    z = torch.randn(4, maker.z, generator=generator)
    x = torch.randn(4, maker.channels, maker.resolution, maker.resolution, generator=generator)
    c = torch.tensor([2, 0, 1, 2]) if maker.c_dim else None
    return z, x, c, torch.eye(3).double()[c] if maker.c_dim else None


@torch.no_grad()
@pytest.mark.parametrize("name", ["G_ema", "G"])
@pytest.mark.parametrize(("psi", "noise"), [(1.0, True), (0.6, False)], ids=["const noise", "truncated, no noise"])
def test_generators_have_the_same_images(published, name, psi, noise):
    maker, data, path = published
    z, _, c, onehot = inputs(maker)
    G = stylegan2.load(path, "keep").build(name)
    expected = cases.images(maker, data[name], z.double(), onehot, psi, noise)
    close(G(z, Condition(c), truncation=psi, noise="const" if noise else "none")[:, :, 0], expected)


@torch.no_grad()
def test_discriminators_have_the_same_logits(published):
    maker, data, path = published
    _, x, c, onehot = inputs(maker)
    D = stylegan2.load(path, "keep").build("D")
    close(D(x[:, :, None], Condition(c)), cases.logits(maker, data["D"], x.double(), onehot))


@torch.no_grad()
def test_grey_networks_are_means_and_repeats(published):
    maker, data, path = published
    z, x, c, onehot = inputs(maker)
    grey = stylegan2.load(path)
    assert grey.network.image_channels == 1 and grey.network.arch == "dense"
    if maker.clamp is None:
        expected = cases.images(maker, data["G_ema"], z.double(), onehot).mean(1, keepdim=True)
        close(grey.build("G_ema")(z, Condition(c), noise="const")[:, :, 0], expected)
    repeated = x[:, :1].double().expand(-1, maker.channels, -1, -1)
    close(grey.build("D")(x[:, :1, None], Condition(c)), cases.logits(maker, data["D"], repeated, onehot))


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_other_protocols_hold_the_same(published, tmp_path, protocol):
    _, data, path = published
    other = stylegan2.load(write(tmp_path / "p.pkl", data, protocol))
    expected = stylegan2.load(path)
    assert other.network == expected.network
    for name in stylegan2.NETWORKS:
        assert all(torch.equal(t, other.states[name][n]) for n, t in expected.states[name].items())


@pytest.mark.faults
@torch.no_grad()
@pytest.mark.parametrize("pair", [("conv0", "conv1"), ("flip", "flip")], ids=["conv0 for conv1", "flipped"])
def test_a_planted_fault_is_seen(tmp_path, pair):
    """The comparison notices exchanged weights and taps in reverse order."""
    maker = cases.Maker(widths=(8, 8, 8))
    data = maker.snapshot()
    G = stylegan2.load(write(tmp_path / "p.pkl", data), "keep").build("G_ema")
    block = G.synthesis.blocks[1]
    a, b = block.conv0.stages[0].weights[0], block.conv1.stages[0].weights[0]
    if pair[0] == "flip":
        a.copy_(a.flip(3, 4))
    else:
        a.data, b.data = b.data, a.data
    z = inputs(maker)[0]
    with pytest.raises(AssertionError):
        close(G(z, noise="const")[:, :, 0], cases.images(maker, data["G_ema"], z.double()))


def child(saved, names):
    for name in names.split("."):
        saved = saved.state["_modules"][name]
    return saved


def laugh():
    """A tuple that has 2^60 leaves when written out."""
    value = ()
    for _ in range(60):
        value = (value, value)
    return value


CHANGES = {
    "orig discriminator": ("D", "b8", {"architecture": "orig"}, r"D\.b8: architecture: expected resnet; got 'orig'"),
    "resnet generator": ("G_ema", "synthesis.b8", {"architecture": "resnet"}, "architecture: expected skip"),
    "relu": ("G", "synthesis.b8.conv0", {"activation": "relu"}, r"conv0: activation: expected lrelu; got 'relu'"),
    "two statistics": ("D", "b4.mbstd", {"num_channels": 2}, "mbstd_num_channels: expected 1; got 2"),
    "no group": ("D", "b4.mbstd", {"group_size": 0}, "group_size: expected a number"),
    "another clamp": ("D", "b8.conv0", {"conv_clamp": 3}, "conv_clamp: expected None as in the other layers; got 3"),
    "another rate": ("G", "mapping.fc1", {"bias_gain": 1}, "lr_multiplier: expected 0.01; got 1"),
    "no noise": ("G", "synthesis.b4.conv1", {"use_noise": False}, "use_noise: expected True; got False"),
    "StyleGAN3": ("G", "synthesis", {"_modules": {}}, "StyleGAN3 networks are not supported"),
    "huge": ("D", "", {"img_resolution": 1 << 40}, "img_resolution: expected a whole number"),
    "odd": ("G", "", {"img_resolution": 24}, "img_resolution: expected 4 times a power of two"),
    "missing level": ("G", "", {"img_resolution": 32}, "b32: expected a module b32"),
    "a laugh": ("G", "synthesis.b4", {"architecture": laugh()}, "architecture: expected skip; got a tuple"),
    "two laughs": (
        "D",
        "b8.conv0",
        {"conv_clamp": laugh()},
        "conv_clamp: expected a number above 0 or None; got a tup",
    ),
    "labels of one": ("G", "", {"c_dim": 3}, "expected G, D and G_ema that agree; classes: G 3, D 0, G_ema 0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_architectures_are_refused_by_name(tmp_path, change):
    network, where, attributes, message = CHANGES[change]
    data = cases.Maker().snapshot()
    target = child(data[network], where) if where else data[network]
    target.state.update(attributes)
    with pytest.raises(UserError, match=message) as refusal:
        stylegan2.load(write(tmp_path / "other.pkl", data))
    assert "other.pkl" in str(refusal.value)


def test_another_filter_and_other_contents_are_refused(tmp_path):
    data = cases.Maker().snapshot()
    child(data["D"], "b8.conv1").state["_buffers"]["resample_filter"] = torch.full((4, 4), 1 / 16)
    with pytest.raises(UserError, match=r"D\.b8\.conv1: resample_filter: expected \(1, 3, 3, 1\)"):
        stylegan2.load(write(tmp_path / "a.pkl", data))
    with pytest.raises(UserError, match="networks G, D and G_ema"):
        stylegan2.load(write(tmp_path / "b.pkl", {"G": 1}))
    data = cases.Maker().snapshot()
    data["G"].class_name = "Discriminator"
    with pytest.raises(UserError, match="class: expected Generator; got 'Discriminator'"):
        stylegan2.load(write(tmp_path / "c.pkl", data))


# ---- hostile files ----

CANARY = "canary"


class Call:
    def __init__(self, function, *arguments, state=None):
        self.answer = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.answer


def named(module, name, arguments=b")"):
    """Calls module.name with the arguments that the opcodes make (none)."""
    return b"\x80\x04c" + f"{module}\n{name}\n".encode() + arguments + b"R."


def inner(stream):
    """A pickle whose storage is this stream."""
    return cases.dumps(Call(torch.storage._load_from_bytes, stream))


def hostile():
    shout = f"touch {CANARY}"
    run = pickle.dumps(Call(os.system, shout), 2)
    storage = cases.storage_stream(torch.zeros(4))
    huge = storage[:-24] + (1 << 36).to_bytes(8, "little") + storage[-16:]
    laughs = b"\x80\x04]\x94" + b"(h\x00h\x00t\x94" + b"".join(b"(h%ch%ct\x94" % (i, i) for i in range(1, 60))
    as_strided = Call(
        torch._utils._rebuild_tensor_v2, torch.zeros(4)._typed_storage(), 0, (1 << 20, 1 << 15), (0, 0), False, {}
    )
    return {
        "os.system": (pickle.dumps(Call(os.system, shout)), "names 'posix.system'"),
        "os.system in protocol 0": (pickle.dumps(Call(os.system, shout), 0), "does not begin as a pickle"),
        "eval": (pickle.dumps(Call(eval, f"open({CANARY!r}, 'w')")), r"names '(__builtin__|builtins)\.eval'"),
        "getattr": (pickle.dumps(Call(getattr, torch.Tensor, "numpy")), "names 'builtins.getattr'"),
        "a dotted name": (b"\x80\x04\x8c\x0btorch._utils\x94\x8c\x12_rebuild_parameter\x94".replace(
            b"\x8c\x12_rebuild_parameter", b"\x8c\x0e__builtins__.x").replace(b"\x0btorch", b"\x0ctorch") + b"\x93.",
            "names 'torch._utils.__builtins__.x'"),
        "a name of a name": (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__call__\x93.", "names 'numpy.dtype.__call__'"),
        "torch.load": (named("torch", "load"), "names 'torch.load'"),
        "their code": (named("training.networks", "Generator"), "names 'training.networks.Generator'"),
        "within a storage": (inner(run), "names 'posix.system'"),
        "within a storage, later": (inner(storage[: storage.index(b"\x80\x02", 40)] + run), "refused"),
        "a zip in a storage": (inner(b"PK\x03\x04" + b"\0" * 99), "cut short or damaged"),
        "a huge storage": (inner(huge), "storage"),
        "a tensor beyond its storage": (cases.dumps(as_strided), "a tensor of 34359738368 elements"),
        "setstate of a stand-in": (
            cases.dumps(Call(cases.reconstruct, {"type": "class", "version": 6, "class_name": "G", "state": {}},
                             state={"__setstate__": 1})), "sets the state of a Persistent"),
        "state of a list": (b"\x80\x04]}b.", "sets the state of a list"),
        "class by NEWOBJ": (b"\x80\x04cnumpy\ndtype\n)\x81.", "makes an object of numpy.dtype"),
        "reconstructor": (
            named("copyreg", "_reconstructor", b"cnumpy\nndarray\ncbuiltins\ndict\nN\x87"), "copyreg._reconstructor"),
        "a call of data": (b"\x80\x04\x8c\x01x)R.", "it calls 'x'"),
        "wrong arguments": (named("torch.storage", "_load_from_bytes"), "with 0 arguments"),
        "persistent id": (b"\x80\x04\x8c\x01xQ.", "has the opcode BINPERSID"),
        "persistent id, text": (b"\x80\x04Px\n.", "has the opcode PERSID"),
        "instance": (b"\x80\x04(ios\nsystem\n.", "has the opcode INST"),
        "extension": (b"\x80\x04\x82\x01.", "has the opcode EXT1"),
        "memo bomb": (b"\x80\x04Nr\xff\xff\xff\x7f0j\xff\xff\xff\x7e.", "damaged"),
        "laughs as a key": (laughs + b"}h\x3bNs.", "a key that is neither text nor a small number"),
        "laughs as a class": (laughs + b")\x81.", "makes an object of a tuple"),
        "laughs as a function": (laughs + b")R.", "it calls a tuple"),
        "laughs as a version": (
            laughs + b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
            b"}(\x8c\x05state}\x8c\x04typeh\x3bu\x85R.",
            "not a class of version 6: type a tuple"),
        "colliding keys": (pickle.dumps({i * (2**61 - 1): None for i in range(9)}), "a key that is neither"),
        "a length that is not there": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fx.", "cut short"),
        "big frame": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged|cut short"),
        "endless number": (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "cut short or damaged"),
        "object scalar": (
            named("numpy.core.multiarray", "scalar", b"cnumpy\ndtype\n\x8c\x02O8\x85RC\x01x\x86"), "scalar that is no"),
        "TensorFlow": (named("dnnlib.tflib.network", "Network"), "TensorFlow networks"),
        "text": (b"<html>not found</html>", "does not begin as a pickle"),
        "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "does not begin as a pickle"),
        "empty": (b"", "does not begin as a pickle"),
        "leftovers": (b"\x80\x04NN.", "left over"),
        "underflow": (b"\x80\x04R.", "lacks what it works on"),
        "a mark as a value": (b"\x80\x04(\x85.", "lacks what it works on"),
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, capsys, name):
    data, message = hostile()[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    path = write(tmp_path / "bad.pkl", data)
    with pytest.raises(PickleError, match=message) as refusal:
        read(path)
    assert "bad.pkl" in str(refusal.value) and "nothing in it was run" in str(refusal.value)
    assert inflate.main(["--source", str(path), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pkl"]


def test_the_canary_would_sing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile()["os.system"][0])
    assert (tmp_path / CANARY).exists()


def test_files_that_are_no_pickle(tmp_path):
    with pytest.raises(PickleError, match="is not a file"):
        read(tmp_path)
    with pytest.raises(PickleError, match=r"absent\.pkl does not exist"):
        read(tmp_path / "absent.pkl")
    with zipfile.ZipFile(tmp_path / "z.pkl", "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(PickleError, match="it is a zip file"):
        read(tmp_path / "z.pkl")


def test_every_shorter_file_is_refused(tmp_path):
    """Cut anywhere, also within a storage's numbers."""
    whole = cases.dumps({"a": torch.arange(9.0), "b": [1.5, "x"]})
    assert torch.equal(read(write(tmp_path / "whole.pkl", whole))["a"], torch.arange(9.0))
    for length in range(2, len(whole)):
        with pytest.raises(PickleError):
            read(write(tmp_path / "cut.pkl", whole[:length]))


def test_changed_bytes_never_give_another_error(tmp_path):
    whole = bytearray(cases.dumps({"a": torch.arange(9.0), "b": cases.EasyDict(x={1, 2})}))
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(3000):
        changed = bytearray(whole)
        place, value = (int(torch.randint(n, (), generator=generator)) for n in (len(whole), 256))
        changed[place] = value
        try:
            read(write(tmp_path / "changed.pkl", bytes(changed)))
        except PickleError:
            refused += 1
    assert refused > 1000


def test_plain_values_come_back(tmp_path):
    import numpy as np

    data = {"f": np.float64(0.1), "i": np.int64(-3), "b": np.bool_(True), "t": (1, (2.5, None)), "s": {1, "x"}}
    data |= {"array": np.arange(3), "bytes": b"\xff\0", "half": torch.ones(3, dtype=torch.float16), "n": 1 << 90}
    data["shared"] = [torch.arange(12.0).view(3, 4)[:, 1:3]] * 2
    for protocol in (2, 3, 4, 5):
        found = read(write(tmp_path / "p.pkl", data, protocol))
        for name in "fibtsn":
            assert found[name] == data[name], name
        assert found["bytes"] == data["bytes"] and torch.equal(found["half"], data["half"])
        assert torch.equal(found["shared"][0], data["shared"][0]) and found["shared"][0] is found["shared"][1]


# ---- from a file to a 3D run ----


def test_a_pickle_starts_a_3d_run(tmp_path, capsys):
    """The whole way: G3D after "centre" has G2D's slices, and train takes the networks from the file."""
    maker = cases.Maker(resolution=8, widths=(8, 4), c_dim=0)
    data = maker.snapshot()
    source, start = write(tmp_path / "p.pkl", data), tmp_path / "start.safetensors"
    command = ["--source", str(source), "--out", str(start), "--profile", "centre", "--arch", "dense"]
    assert inflate.main(command) == 0
    out = capsys.readouterr().out
    assert "prepare data sets for it with --shape 8 8 8" in out and "--arch dense" in out
    network = start_network(start, NetworkConfig((8, 8, 8), (4, 4, 4), ((2, 2, 2),), (16, 16), "dense"))
    assert network.widths == (8, 4) and network.z_dim == maker.z and network.mbstd_group == 4
    G = Generator(network)
    tensors, _ = checkpoint.load(start)
    checkpoint.load_module(G, "G_ema", tensors, "file")
    z = inputs(maker)[0]
    with torch.no_grad():
        volume = G(z, noise="none")
    expected = cases.images(maker, data["G_ema"], z.double(), noise=False).mean(1, keepdim=True)
    for d in range(8):
        close(volume[:, :, d], expected)
    write_phantom_dataset(tmp_path / "data", count=4, shape=(8, 8, 8), seed=1)
    told = ["--stage", "3d", "--init", str(start), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    told += ["--kimg-3d", "0.004", "--batch-3d", "4", "--threads", "1", "--device", "cpu", "--no-progress"]
    assert train.main([*told, "--arch", "split_depth"]) == 2
    assert "give --arch dense" in capsys.readouterr().err
    told += ["--arch", "dense", "--precision", "bf16", "--augment", "ada"]
    assert train.main(told) == 0, capsys.readouterr().err
    recorded = read_json(tmp_path / "run" / "config.json")["config"]["network"]
    assert recorded["widths"] == [8, 4] and recorded["z_dim"] == maker.z
    assert train.main(told) == 0, "the finished run is found again"


@pytest.mark.parametrize("arch", ["split_depth", "grouped", "acs4", "separable"])
def test_other_architectures_start_from_the_weights_that_they_keep(tmp_path, capsys, arch):
    maker = cases.Maker(resolution=8, widths=(8, 4))
    start = tmp_path / "start.safetensors"
    command = ["--source", str(write(tmp_path / "p.pkl", maker.snapshot())), "--out", str(start)]
    assert inflate.main([*command, "--arch", arch, "--depth", "4"]) == 0
    out = capsys.readouterr().out
    network = NetworkConfig.from_json(checkpoint.read_network(start))
    assert (network.arch, network.shape) == (arch, (4, 8, 8))
    tensors, _ = checkpoint.load(start)
    for name, kind in (("G", Generator), ("D", Discriminator)):
        checkpoint.load_module(kind(network), name, tensors, "file")
        assert all(n in out for n in kind(network).state_dict())
    lines = out.splitlines()
    found = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if "stages.0.weights" in line}
    assert ("selected" in found["blocks.0.conv0.stages.0.weights.0"]) == (arch != "separable")
    assert arch != "separable" or any("stages.1.weights.0" in n and "identity" in n for n in lines)


def test_only_dense_sources_change_their_architecture():
    before = NetworkConfig((8, 8, 8), (4, 4, 4), ((2, 2, 2),), (8, 4), "split_depth")
    after = NetworkConfig((8, 8, 8), (4, 4, 4), ((2, 2, 2),), (8, 4), "acs4")
    with pytest.raises(UserError, match="--arch acs4: the source's generator is split_depth; expected that, or"):
        select_and_inflate(Generator(before.flat()), before, Generator(after), after, "average")


TAPS = {  # of the 2D kernel, by architecture and branch
    "split_depth": [(slice(0, 3), slice(0, 3))] * 2,
    "grouped": [(slice(0, 3), slice(0, 3))] * 2,
    "acs4": [(slice(0, 3), slice(0, 3)), (slice(0, 3), slice(0, 3)), (slice(1, 2), slice(0, 3)),
             (slice(0, 3), slice(1, 2))],
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("modulated", [False, True], ids=["plain", "modulated"])
@pytest.mark.parametrize("arch", TAPS)
def test_a_split_layer_is_the_dense_one_restricted(arch, modulated):
    """Each output channel by itself: a dense 2D convolution whose other weights are zero, by PyTorch."""
    torch.manual_seed(0)
    cin, cout, count = 8, 12, len(TAPS[arch])

    def layer(name):
        stages = kernel_stages(name, True)
        return (ModulatedConv(cin, cout, 5, stages, (1, 6, 4)) if modulated else Conv(cin, cout, stages)).double()

    dense, split = layer("dense"), layer(arch)
    dense.bias.normal_()
    actions = select_weights(dense, split)
    assert set(actions.values()) == {"selected"} and len(actions) == count + 1
    x, w = torch.randn(2, cin, 1, 6, 4).double(), torch.randn(2, 5).double()
    found = split(x, w) if modulated else split(x)
    weight = dense.stages[0].weights[0][:, :, 0] / 72**0.5
    for channel in range(cout):
        branch = channel % count
        kept = torch.zeros(cin, 3, 3).double()
        inputs_seen = slice(branch * cin // count, (branch + 1) * cin // count)
        rows, columns = TAPS[arch][branch]
        kept[inputs_seen, rows, columns] = weight[channel, inputs_seen, rows, columns]
        if modulated:
            styles = (w @ dense.affine.weight.T / 5**0.5 + dense.affine.bias)[:, :, None, None]
            norm = (kept * styles).square().sum((1, 2, 3)).sqrt()
            y = torch.nn.functional.conv2d(x[:, :, 0] * styles, kept[None], padding=1) / norm[:, None, None, None]
        else:
            factor = weight[channel].square().sum().sqrt() / kept.square().sum().sqrt()
            y = torch.nn.functional.conv2d(x[:, :, 0], kept[None] * factor, padding=1)
        y = torch.nn.functional.leaky_relu(y + dense.bias[channel], 0.2) * 2**0.5
        torch.testing.assert_close(found[:, channel : channel + 1, 0], y, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_separable_computes_in_2d_what_dense_does():
    torch.manual_seed(0)
    cfg = NetworkConfig((1, 16, 16), (1, 4, 4), ((1, 2, 2),) * 2, (8, 8, 4), "dense", z_dim=6, w_dim=7)
    separable = dataclasses.replace(cfg, arch="separable")
    z, x = torch.randn(3, 6).double(), torch.randn(4, 1, 1, 16, 16).double()
    G, G2 = Generator(cfg).double(), Generator(separable).double()
    D, D2 = Discriminator(cfg).double(), Discriminator(separable).double()
    select_weights(G, G2), select_weights(D, D2)
    torch.testing.assert_close(G2(z, noise="const"), G(z, noise="const"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(D2(x), D(x), rtol=1e-6, atol=1e-6)


def test_an_own_dense_checkpoint_starts_a_split_run(tmp_path, capsys):
    write_phantom_dataset(tmp_path / "data", count=4, shape=(6, 8, 12), seed=1)
    told = ["--data", str(tmp_path / "data"), "--threads", "1", "--device", "cpu", "--no-progress"]
    first = [*told, "--out", str(tmp_path / "flat"), "--stage", "2d", "--arch", "dense", "--kimg-2d", "0.004"]
    assert train.main([*first, "--batch-2d", "4"]) == 0
    source = tmp_path / "flat" / "checkpoints" / "2d-final.safetensors"
    start = tmp_path / "start.safetensors"
    assert inflate.main(["--source", str(source), "--out", str(start), "--arch", "split_depth"]) == 0
    assert "selected, inflated" in capsys.readouterr().out
    second = [*told, "--out", str(tmp_path / "deep"), "--stage", "3d", "--init", str(start)]
    assert train.main([*second, "--kimg-3d", "0.004", "--batch-3d", "4"]) == 0


def test_options_that_do_not_belong_are_refused(tmp_path, capsys):
    source = write(tmp_path / "p.pkl", cases.Maker(resolution=8, widths=(6, 6)).snapshot())
    out = ["--out", str(tmp_path / "o.safetensors")]
    own = ["--source", str(tmp_path / "x.safetensors"), *out]
    for command, message in (
        (["--source", str(source), *out, "--config", "c"], "--config: is for checkpoints of a run"),
        ([*own, "--depth", "4"], "--depth: is for pickles"),
        ([*own, "--channels", "grey"], "--channels: is for pickles"),
        (["--source", str(source), *out, "--depth", "9"], "shape: axis D (--depth) has 9 voxels"),
        (["--source", str(source), *out, "--arch", "acs4"], "6 channels cannot be split into 4 branches"),
    ):
        assert inflate.main(command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()

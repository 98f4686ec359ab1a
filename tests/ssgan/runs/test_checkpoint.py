"""Checkpoints: what is written is read, damage is seen, a full disk loses nothing."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointError, CheckpointMeta, DamagedError


def meta(stage="2d", images=16):
    return CheckpointMeta(stage, images // 8, images, "hash", 0)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "G.w": torch.randn(3, 5, generator=generator),
        "G.conv": torch.randn(2, 3, 1, 3, 5, generator=generator).to(memory_format=torch.channels_last_3d),
        "adam_g.w|step": torch.tensor(4.0),
        "count": torch.tensor([7, 8]),
        "double": torch.randn(3, generator=generator, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False, True]),
    }


def write(folder, stage="2d", images=16, final=False, seed=0):
    m = meta(stage, images)
    path = checkpoint.final_path(folder, stage) if final else checkpoint.numbered_path(folder, m)
    return checkpoint.save(path, tensors(seed), m)


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype and a[n].shape == b[n].shape for n in a
    )


def test_round_trip_and_readable_by_safetensors(tmp_path):
    path = write(tmp_path)
    assert path.name == "2d-000000016.safetensors"
    loaded, m = checkpoint.load(path)
    assert m == meta() and same(loaded, tensors())
    assert same(load_file(path), tensors())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_cut_is_seen(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(DamagedError, match=str(path)):
            checkpoint.load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(DamagedError):
        checkpoint.load(path)


def test_every_flipped_bit_is_seen_or_harmless(tmp_path):
    """A flip anywhere either raises or (in a key's white space) leaves tensors and place unchanged."""
    path = write(tmp_path)
    data = path.read_bytes()
    raised = 0
    for position in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            loaded, m = checkpoint.load(path)
        except CheckpointError:
            raised += 1
        else:
            assert m == meta() and same(loaded, tensors()), f"flip at byte {position} went unseen"
    assert raised > 0.9 * len(data) / 3


def test_fallback_sets_the_damaged_one_aside_and_says_so(tmp_path):
    write(tmp_path, images=16, seed=1)
    newest = write(tmp_path, images=32, seed=2)
    newest.write_bytes(newest.read_bytes()[:-5])
    said = []
    loaded, m, path = checkpoint.load_newest(tmp_path, said.append)
    assert m.images == 16 and path.name == "2d-000000016.safetensors" and same(loaded, tensors(1))
    assert len(said) == 1 and "2d-000000032.safetensors" in said[0] and "damaged" in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "2d-000000016.safetensors",
        "2d-000000032.safetensors.damaged",
    ]


def test_all_damaged_is_an_error_and_none_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    for images in (16, 32):
        write(tmp_path, images=images).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        checkpoint.load_newest(tmp_path, lambda text: None)


def test_another_format_is_an_error_not_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load_newest(tmp_path)
    assert path.exists()


def test_order_and_pruning(tmp_path):
    for stage, images in (("2d", 16), ("2d", 999_999_999), ("2d", 1_000_000_000), ("3d", 8), ("3d", 24)):
        write(tmp_path, stage, images)
    write(tmp_path, "2d", 999_999_999, final=True)
    (tmp_path / "other.safetensors").write_bytes(b"")
    names = [p.name[:-12] for p in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["2d-000000016", "2d-999999999", "2d-final", "2d-1000000000", "3d-000000008", "3d-000000024"]
    checkpoint.prune(tmp_path, 2)
    names = [p.name[:-12] for p in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["2d-final", "3d-000000008", "3d-000000024"]


def test_full_disk_half_way_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = write(tmp_path, seed=1)
    before = path.read_bytes()
    real, calls = checkpoint._write, []

    def full(file, data):
        calls.append(len(data))
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(OSError) as caught:
        write(tmp_path, seed=2)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_load_module_names_what_does_not_fit(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(4, 2)
    given = checkpoint.with_prefix("G", source.state_dict()) | {"G.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"extra is unknown; weight is \(2, 3\), expected \(2, 4\)"):
        checkpoint.load_module(target, "G", given, "file")
    del given["G.extra"], given["G.bias"]
    with pytest.raises(CheckpointError, match="bias is missing"):
        checkpoint.load_module(source, "G", given, "file")


def test_adam_goes_on_bit_for_bit():
    def build():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 4), nn.Conv3d(1, 2, 3).to(memory_format=torch.channels_last_3d))
        return net, torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.99))

    def step(net, adam, seed):
        adam.zero_grad(set_to_none=True)
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        loss = net[0](x).square().sum()
        if seed > 2:  # some parameters have no state in the first steps
            loss = loss + net[1](torch.ones(1, 1, 3, 4, 5)).square().sum()
        loss.backward()
        adam.step()

    straight, adam = build()
    for seed in range(6):
        step(straight, adam, seed)
    for stop in (2, 4):
        first, adam1 = build()
        for seed in range(stop):
            step(first, adam1, seed)
        second, adam2 = build()
        second.load_state_dict(first.state_dict())
        checkpoint.load_adam(adam2, second, checkpoint.adam_tensors(adam1, first))
        for seed in range(stop, 6):
            step(second, adam2, seed)
        assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="unknown parameter 'nope'"):
        checkpoint.load_adam(adam, straight, {"nope|step": torch.tensor(1.0)})


def test_config_hash_depends_on_every_value_and_not_on_order():
    a = {"x": 1, "y": {"z": [1, 2]}}
    assert checkpoint.config_hash(a) == checkpoint.config_hash(json.loads(json.dumps({"y": {"z": [1, 2]}, "x": 1})))
    assert checkpoint.config_hash(a) != checkpoint.config_hash({"x": 1, "y": {"z": [1, 3]}})

"""config.json of a run: what is read from it, and what is said where an entry is missing."""

import dataclasses
import json

import pytest

from ssgan.config.presets import preset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.runs.config import RunError, config_of_checkpoint, is_run, load_config, read_config
from ssgan.utils.files import FileError


@pytest.fixture
def run(tmp_path):
    """A folder with a config.json of a run on classes, and its record."""
    data = write_phantom_dataset(tmp_path / "data", count=2, shape=(16, 24, 16), seed=1)
    cfg = preset("demo").train_config("demo")
    cfg = dataclasses.replace(cfg, network=dataclasses.replace(cfg.network, classes=2))
    info = data.info.to_json() | {"classes": ["ill", "healthy"]}
    record = {
        "format": 1, "config": cfg.to_json(), "init": {"path": "start.safetensors", "sha256": "0"},
        "data": {"path": "data", "content_hash": data.info.content_hash, "info": info, "class_counts": [3, 1]},
        "environment": {"torch": "2"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(record))
    return tmp_path, cfg, data.info, record


def test_everything_that_a_run_records(run):
    folder, cfg, info, record = run
    config = load_config(folder)
    assert is_run(folder) and not is_run(folder / "data")
    assert config.train == cfg and config.record == json.loads(json.dumps(record))
    assert dataclasses.replace(config.info, classes=None) == dataclasses.replace(info, classes=None)
    assert (config.content_hash, config.data_path, config.data_folder) == (info.content_hash, "data", folder / "data")
    assert (config.class_names, config.class_counts) == (["ill", "healthy"], [3, 1])
    assert (config.init_path, config.trained_on) == ("start.safetensors", {"torch": "2"})


def test_what_older_runs_and_runs_without_classes_record(run):
    folder, _, _, record = run
    record["init"] = None
    del record["environment"], record["data"]["class_counts"], record["data"]["info"]["classes"]
    record["data"]["path"] = "/elsewhere"
    (folder / "config.json").write_text(json.dumps(record))
    config = load_config(folder)
    assert (config.class_names, config.class_counts) == (["0", "1"], [1, 1])
    assert (config.init_path, config.trained_on, str(config.data_folder)) == (None, None, "/elsewhere")
    record["config"]["network"]["classes"] = 0
    (folder / "config.json").write_text(json.dumps(record))
    assert (load_config(folder).class_names, load_config(folder).class_counts) == ([], [])


def test_the_configuration_of_a_checkpoint_is_that_of_its_run(run):
    folder = run[0]
    assert config_of_checkpoint(folder / "checkpoints" / "2d-final.safetensors").path == folder / "config.json"
    assert config_of_checkpoint(folder / "2d-final.safetensors") is None


def test_what_is_missing_is_named(run):
    folder = run[0]
    with pytest.raises(RunError, match=r"--weights .*data is not a run's folder \(no config\.json\)"):
        load_config(folder / "data", "--weights")
    with pytest.raises(FileError, match=r"absent\.json does not exist"):
        read_config(folder / "absent.json")
    (folder / "config.json").write_text('{"data": {}}')
    config = load_config(folder)
    with pytest.raises(RunError, match=r"config\.json has no entry config; expected the file that `ssgan train` wrote"):
        config.train  # noqa: B018
    with pytest.raises(RunError, match=r"config\.json has no entry data\.info;"):
        config.info  # noqa: B018
    (folder / "config.json").write_text("[]")
    with pytest.raises(RunError, match="is not the configuration of a run"):
        load_config(folder)

"""The options of `ssgan train`: their groups in the help."""

import argparse

from ssgan.config.presets import preset
from ssgan.runs.config import OPTIONS, option_for
from ssgan.training.options import add_arguments

GROUPS = (
    "run", "data", "architecture", "stages and budgets", "loss and regularisation", "augmentation", "metrics",
    "precision and hardware",
)  # fmt: skip


def test_every_option_stands_in_a_named_group_and_has_a_help_text():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    grouped = {}
    for group in parser._action_groups:
        grouped |= {action.dest: group.title for action in group._group_actions}
    options = {action.dest: action for action in parser._actions if action.dest != "help"}
    assert set(grouped) == {"help", *options}
    assert {grouped[name] for name in options} == set(GROUPS)
    assert [name for name, action in options.items() if not action.help] == []


def test_the_options_that_a_refused_resume_names_exist():
    """Each gives the field that differs the value that it had."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    cfg = preset("hippocampus").train_config("hippocampus").to_json()
    fields = {name: value for name, value in cfg.items() if name in OPTIONS}
    fields |= {f"network.{name}": "dense" for name in ("arch", "arch_d")}
    fields |= {f"{stage}.{name}": value for stage in ("stage_2d", "stage_3d") for name, value in cfg[stage].items()}
    assert fields["stage_3d.r2_gamma"] is None and option_for("stage_3d.r2_gamma", None) == ""
    fields |= {f"{stage}.r2_gamma": 2.0 for stage in ("stage_2d", "stage_3d")}
    named = {field: option_for(field, value) for field, value in fields.items()}
    assert [field for field, option in named.items() if not option] == ["stage_2d.ema_rampup", "stage_3d.ema_rampup"]
    assert set(OPTIONS) <= set(named)
    for field, option in named.items():
        if option:
            args = parser.parse_args(["--out", "RUN", *option.split()])
            assert getattr(args, option.split()[0][2:].replace("-", "_")) == fields[field]

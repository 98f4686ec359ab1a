"""The options of `ssgan train`: their groups in the help."""

import argparse

from ssgan.training.options import add_arguments

GROUPS = (
    "run", "data", "architecture", "stages and budgets", "regularisation", "augmentation", "metrics",
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

"""The help of every command: two examples or more, and what each option means."""

import argparse
import importlib

import pytest

from tests.test_floors import files, module_of

COMMANDS = (
    "experiments.collect",
    "experiments.footage_baselines",
    "experiments.launch",
    "experiments.real_video",
    "experiments.steps_to_accuracy",
    "benchmarks.devices",
    "benchmarks.loop",
    "benchmarks.pretraining",
    "benchmarks.rollout",
    "benchmarks.suites",
    "vivit.analysis.ablation",
    "vivit.analysis.compare",
    "vivit.analysis.faithfulness",
    "vivit.analysis.figures",
    "vivit.analysis.film",
    "vivit.analysis.moments",
    "vivit.analysis.moment_scores",
    "vivit.analysis.__main__",
    "vivit.analysis.statistics",
    "vivit.compile",
    "vivit.dataprep.__main__",
    "vivit.describe",
    "vivit.evaluate",
    "vivit.features",
    "vivit.predict",
    "vivit.pretrained.__main__",
    "vivit.probe",
    "vivit.train",
)


def parser_of(command, monkeypatch):
    """The parser that a command makes, taken when it parses."""
    made = []

    def take(self, *_, **__):
        made.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", take)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", take)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(command).main([])
    return made[0]


def with_subcommands(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_says_what_options_mean(command, monkeypatch):
    for parser in with_subcommands(parser_of(command, monkeypatch)):
        text = parser.format_help()
        examples = text.partition("examples:")[2]
        assert examples.count("\n  python -m ") >= 2, parser.prog
        assert "docs/" not in text, parser.prog
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, (parser.prog, action.dest)


def test_every_command_is_in_the_list():
    """Every file that runs as a command and has a parser."""
    found = {
        module_of(path)
        for path in files("vivit", "experiments", "benchmarks")
        if "run_command(main)" in path.read_text()
    }
    assert found - {"vivit.data.__main__"} <= set(COMMANDS)  # that one is vivit.dataprep's

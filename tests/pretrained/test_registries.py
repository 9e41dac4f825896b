"""What is registered is what runs, for sources and for every choice of `load` and `export`."""

import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from safetensors.numpy import load_file

import vivit
from tests.scenic import GOLDEN
from tests.test_model import TINY, init
from vivit import pretrained
from vivit.model.upgrade import READOUTS as RENAMED_READOUTS
from vivit.model.upgrade import upgrade_model
from vivit.pretrained.__main__ import main
from vivit.pretrained.choices import CLASS_TOKENS, HEADS, INFLATIONS, TIME_ATTENTIONS
from vivit.pretrained.resize import RESIZES
from vivit.pretrained.settings import InitSettings, LoadOptions
from vivit.pretrained.sources import SOURCES, SourceModel, source
from vivit.pretrained.writers import WRITERS, Writer
from vivit.settings import Config

HF = GOLDEN / "hf_vivit"  # a class token, 2 x 8 x 8 tubelets of clips 4 x 16 x 16


@pytest.fixture
def register():
    """A function that registers an entry under a name until the test ends."""
    added = []

    def add(registry, name, entry):
        registry.add(name, entry)
        added.append((registry, name))

    yield add
    for registry, name in added:
        del registry._items[name]


def test_a_registered_source_reads_its_files_and_nothing_else_does(tmp_path, capsys):
    config = {**TINY, "family": "joint"}
    params = pretrained.load(
        pretrained.export(tmp_path / "a", config, init(vivit.build(config)))
    ).params
    flat = {path: np.asarray(a) for path, a in _flat(params).items()}
    np.savez(tmp_path / "mine.npz", **{f"mine/{path}": a for path, a in flat.items()})
    with pytest.raises(ValueError, match="of no known source"):
        pretrained.load(tmp_path / "mine.npz")

    @source(
        "mine",
        about="a test",
        recognises=lambda archive: all(name.startswith("mine/") for name in archive.arrays),
    )
    def read(archive, hints):
        params = {n.removeprefix("mine/"): a for n, a in archive.arrays.items()}
        return SourceModel(config, params=params)

    try:
        for name in ("auto", "mine"):
            loaded = pretrained.load(tmp_path / "mine.npz", source=name)
            assert loaded.report.source == "mine"
            for path, array in _flat(loaded.params).items():
                np.testing.assert_array_equal(array, flat[path])
        assert pretrained.load(HF).report.source == "hf_vivit"
        main(["inspect", str(tmp_path / "mine.npz"), "--source=mine"])
        assert ": mine, " in capsys.readouterr().out
    finally:
        del SOURCES._items["mine"]


def _flat(params):
    from flax.traverse_util import flatten_dict

    return flatten_dict(params, sep="/")


CHOICES = {  # option -> its registry, an entry that gives sevens, what makes it run, where it shows
    "inflation": (
        INFLATIONS,
        lambda kernel, frames: np.full((frames, *kernel.shape), 7, np.float32),
        {"clip": (4, 16, 16), "model": {"tubelet": (4, 8, 8)}},
        "tubelet/kernel",
    ),
    "position_resize": (
        RESIZES,
        lambda table, lengths: np.full((*lengths, table.shape[-1]), 7, np.float32),
        {"clip": (8, 16, 16)},
        "stage_0/position/table",
    ),
    "time_attention": (
        TIME_ATTENTIONS,
        lambda part, array, projected: np.full_like(array, 7),
        {"family": "divided", "model": {"position": "learned_space_time"}},
        "stage_0/layer_1/attention_divided_time/query/kernel",
    ),
    "class_token": (
        CLASS_TOKENS,
        lambda token: np.full_like(token, 7),
        {},
        "stage_0/class_token",
    ),
    "head": (HEADS, lambda array, classes: np.full_like(array, 7), {}, "head/kernel"),
}


@pytest.mark.parametrize("option", CHOICES)
def test_a_registered_choice_is_what_runs(option, register):
    registry, entry, others, path = CHOICES[option]
    register(registry, "sevens", entry)
    usual, sevens = (
        _flat(pretrained.load(HF, **others, **how).params) for how in ({}, {option: "sevens"})
    )
    assert (sevens[path] == 7).all()
    assert not (usual[path] == 7).any()


def test_a_registered_writer_is_what_runs(register, tmp_path):
    writer = Writer(
        lambda exported: {"classes": np.asarray(exported.settings.classes)},
        lambda exported: {"labels": exported.labels},
    )
    register(WRITERS, "count", writer)
    params = init(vivit.build({**TINY, "family": "joint"}))
    folder = pretrained.export(
        tmp_path / "x", {**TINY, "family": "joint"}, params, to="count", labels=list("abcde")
    )
    assert int(load_file(folder / "model.safetensors")["classes"]) == 5
    assert json.loads((folder / "config.json").read_text()) == {"labels": list("abcde")}


def test_the_options_are_listed_once(capsys):
    """`load` and the command line take the fields of LoadOptions, and configs those and five."""
    names = {field.name for field in fields(LoadOptions)}
    of_configs = {"path", "model", "allow", "optimizer", "sha256"}
    assert {f.name for f in fields(InitSettings)} == names | of_configs
    assert Config().init == InitSettings()
    for name in names - {"source_clip", "checkpoint"}:
        with pytest.raises(ValueError, match=r"unknown|no classes"):
            pretrained.load(HF, **{name: "nonsense"})
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in names)


OLD = {
    "divided": {"stages": [{"depth": 2, "mixers": ["divided_time", "space"], "pool": "cls"}]},
    "pairs": {"stages": [[["depth", 2], ["mixers", ["joint"]], ["pool", "attention"]]]},
    "readout": {"family": "joint", "readout": "attentive", "temporal_depth": 4},
    "map": {"family": "joint", "readout": "map"},
    "temporal_depth": {"family": "factorised_encoder", "temporal_depth": 2},
}
NEW = {
    "divided": {
        "stages": [{"depth": 2, "attentions": ["time", "space"], "pool": "cls", "block": "divided"}]
    },
    "pairs": {"stages": [{"depth": 2, "attentions": ["joint"], "pool": "videoprism_pool"}]},
    "readout": {"family": "joint", "readout": "vjepa2_pool"},
    "map": {"family": "joint", "readout": "map_head"},
    "temporal_depth": {"family": "factorised_encoder(temporal_depth=2)"},
}


@pytest.mark.parametrize("name", OLD)
def test_portable_folders_of_version_0_1_0(name, tmp_path):
    config = {**{k: v for k, v in TINY.items() if k != "family"}, **NEW[name]}
    params = init(vivit.build(config))
    folder = pretrained.export(tmp_path / "x", config, params)
    about = json.loads((folder / "config.json").read_text())
    about["model"] = {**{k: v for k, v in TINY.items() if k != "family"}, **OLD[name]}
    (folder / "config.json").write_text(json.dumps({**about, "vivit": "0.1.0"}))
    loaded = pretrained.load(folder)
    assert vivit.build(loaded.model_config) == vivit.build(config)
    assert {row.action for row in loaded.report.rows} == {"loaded"}
    again = upgrade_model(loaded.model_config)
    assert vivit.build(again) == vivit.build(config)


def test_renamed_readouts_are_registered():
    from vivit.model.readout import READOUTS

    assert set(RENAMED_READOUTS.values()) <= set(READOUTS)
    assert not set(RENAMED_READOUTS) & set(READOUTS)


def test_training_imports_no_source_that_its_config_does_not_name():
    code = "import sys, vivit.train; print(*(n for n in sys.modules if 'vivit.pretrained' in n))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.removeprefix("vivit.pretrained.") for name in run.stdout.split()}
    assert names == {"vivit.pretrained", "settings", "start"}

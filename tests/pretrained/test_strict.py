"""Everything in a file and in a model is accounted for; what is damaged says so."""

import json
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.pretrained.flax_files import below, write_scenic, write_vision_transformer
from tests.scenic import GOLDEN
from vivit import pretrained

HF = GOLDEN / "hf_vivit"


@pytest.fixture
def folder(tmp_path):
    """A copy of a HuggingFace folder, to be spoiled."""
    shutil.copytree(HF, tmp_path / "hf")
    return tmp_path / "hf"


def spoil(folder, change):
    """Rewrites the folder's arrays by a function of them."""
    path = folder / "model.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    return folder


def refuses(path, *messages, **options):
    with pytest.raises(ValueError, match=re.escape(messages[0])) as caught:
        pretrained.load(path, **options)
    for message in messages:
        assert message in str(caught.value), str(caught.value)
    return str(caught.value)


def test_all_problems_come_at_once(folder):
    def change(arrays):
        arrays["vivit.surprise"] = np.zeros(3, np.float32)
        arrays["another"] = np.zeros((2, 2), np.float32)

    text = refuses(
        spoil(folder, change), "2 problems", "unexpected: vivit.surprise [3]", "another [2, 2]"
    )
    assert len(text.splitlines()) == 3


def test_missing_arrays_and_wrong_shapes_come_at_once(folder):
    def change(arrays):
        del arrays["vivit.layernorm.bias"]
        del arrays["vivit.encoder.layer.1.intermediate.dense.weight"]
        arrays["classifier.bias"] = np.zeros(4, np.float32)

    refuses(
        spoil(folder, change),
        "3 problems",
        "missing: stage_0/norm/bias [24]",
        "missing: stage_0/layer_1/mlp/up/kernel [24, 40]",
        "wrong shape: classifier.bias for head/bias [4], not [5]",
    )


def test_a_layer_that_is_left_out_is_missed(folder):
    def change(arrays):
        for name in [n for n in arrays if ".layer.0." in n]:
            del arrays[name]

    refuses(spoil(folder, change), "16 problems", "missing: stage_0/layer_0/norm_joint/scale")


def test_one_parameter_under_two_names(folder):
    def change(arrays):
        arrays["vivit.layers.0.mlp.fc1.bias"] = np.zeros(40, np.float32)

    refuses(spoil(folder, change), "doubly matched", "vivit.layers.0.mlp.fc1.bias")


def test_what_a_model_would_need_beyond_the_file():
    refuses(HF, "16 problems", "missing: stage_0/layer_2/mlp/up/kernel", model={"depth": 3})
    refuses(HF, "16 problems", "unexpected: vivit.encoder.layer.1.", model={"depth": 1})
    refuses(HF, "wrong shape", "vivit.encoder.layer.0.intermediate", model={"mlp_dim": 32})
    refuses(HF, "unknown key model.colour", model={"colour": 1})
    text = "wrong shape: vivit.embeddings.patch_embeddings.projection.weight [2, 8, 8, 3, 24]"
    refuses(HF, text, model={"tubelet": (2, 4, 4)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "hub"}, "unknown source 'hub'; known: hf_clip, hf_dinov2"),
        ({"inflation": "best"}, "unknown inflation 'best'"),
        ({"position_resize": "nearest"}, "unknown resize 'nearest'; known: cubic, linear"),
        (
            {"time_attention": "zero"},
            "unknown time_attention 'zero'; known: copy, fresh, scenic, zero_out",
        ),
        ({"class_token": "drop"}, "unknown class_token 'drop'; known: fresh, keep"),
        ({"positions": "linear"}, "unknown key positions; did you mean position_resize?"),
        ({"head": ("cat",)}, "head=('cat',): no classes ['cat'] in the file"),
        ({"head": "keep", "classes": 7}, "wrong shape: classifier.bias [5] for head/bias [7]"),
    ],
)
def test_wrong_options(options, message):
    refuses(HF, message, **options)


def test_names_that_are_not_there(tmp_path):
    refuses(tmp_path / "nowhere", "no file or folder")
    refuses(tmp_path, "no weights in", "name the file")
    (tmp_path / "model.safetensors").write_bytes((HF / "model.safetensors").read_bytes())
    refuses(tmp_path, "of no known source", "There is no config.json next to it")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_files(folder, tmp_path, keep):
    arrays = below(np.load(GOLDEN / "scenic_import_gap_fsa_tile.npz"), "source")
    files = [
        folder / "model.safetensors",
        write_vision_transformer(tmp_path / "vit.npz", arrays),
        write_scenic(tmp_path / "scenic", arrays) / "checkpoint",
    ]
    for file in files:
        file.write_bytes(file.read_bytes()[:keep])
        refuses(file, "is damaged or is not a")


def test_bit_flips_in_headers_never_crash(folder, tmp_path):
    """They are refused, or the numbers are other numbers: the formats have no checksums of data."""
    rng = np.random.default_rng(0)
    arrays = below(np.load(GOLDEN / "scenic_import_gap_fsa_tile.npz"), "source")
    files = [
        folder / "model.safetensors",
        write_vision_transformer(tmp_path / "vit.npz", arrays),
        write_scenic(tmp_path / "scenic", arrays) / "checkpoint",
    ]
    refused = 0
    for file in files:
        whole = file.read_bytes()
        for _ in range(20):
            data = bytearray(whole)
            data[rng.integers(200)] ^= 1 << rng.integers(8)
            file.write_bytes(data)
            try:
                pretrained.load(file)
            except ValueError:
                refused += 1
    assert refused > 30


def test_a_header_that_promises_too_much(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    refuses(folder, "is damaged or is not a safetensors file")
    huge = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }"
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", huge.ljust(127) + b"\n")
    refuses(tmp_path / "huge.npz", "promises 39999999999996 bytes and holds 0")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/vivit_was_here"),))


def test_no_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", **{"embedding/kernel": np.array([Evil()], dtype=object)})
    refuses(tmp_path / "a.npz", "holds Python objects, which are never unpickled")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Evil()))
    refuses(tmp_path / "b.npz", "is damaged or is not a npz file")
    (tmp_path / "checkpoint").write_bytes(pickle.dumps(Evil()))
    refuses(tmp_path / "checkpoint", "is damaged or is not a Flax msgpack file")
    assert not Path("/tmp/vivit_was_here").exists()


def test_pytorch_files_need_torch(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    shutil.copy(HF / "config.json", tmp_path)
    with pytest.raises(ValueError, match="install torch|damaged"):
        pretrained.load(tmp_path)
    assert not Path("/tmp/vivit_was_here").exists()


def test_pytorch_files_hold_the_same_numbers(tmp_path):
    torch = pytest.importorskip("torch")
    shutil.copy(HF / "config.json", tmp_path)
    arrays = {n: torch.tensor(a) for n, a in load_file(HF / "model.safetensors").items()}
    for saved in (arrays, {"state_dict": {f"module.{n}": a for n, a in arrays.items()}}):
        torch.save(saved, tmp_path / "pytorch_model.bin")
        ours, theirs = (pretrained.load(p).params["head"]["kernel"] for p in (tmp_path, HF))
        np.testing.assert_array_equal(ours, theirs)
    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    refuses(tmp_path, "it holds more than tensors, and only tensors are read")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nans_are_named(folder, value):
    def change(arrays):
        arrays["vivit.layernorm.bias"][3] = value

    refuses(spoil(folder, change), "NaN or infinity: vivit.layernorm.bias")


def sharded(folder, names=("a.safetensors", "b.safetensors")):
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [dict(list(arrays.items())[i::2]) for i in range(2)]
    weight_map = {}
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / Path(name).name)
        weight_map |= dict.fromkeys(half, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards(folder):
    sharded(folder)
    loaded = pretrained.load(folder)
    assert {"a.safetensors", "b.safetensors"} < set(loaded.report.sha256)
    np.testing.assert_array_equal(
        loaded.params["head"]["kernel"], pretrained.load(HF).params["head"]["kernel"]
    )


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/a.safetensors", "a.bin"])
def test_shards_stay_in_their_folder(folder, name):
    index = sharded(folder)
    index.write_text(index.read_text().replace('"a.safetensors"', json.dumps(name)))
    refuses(folder, "which is not a safetensors file of its folder")


def test_shards_that_do_not_agree_with_their_index(folder):
    index = sharded(folder)
    values = json.loads(index.read_text())
    values["weight_map"].pop("classifier.bias")
    index.write_text(json.dumps(values))
    refuses(folder, "do not agree on: classifier.bias")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "vivit"}'])
def test_spoiled_configs(folder, text):
    (folder / "config.json").write_text(text)
    refuses(folder, "config.json")


def test_a_clip_that_the_weights_do_not_tell(tmp_path):
    arrays = np.load(GOLDEN / "scenic_spacetime_gap.npz")
    file = write_scenic(tmp_path, below(arrays, "params"))
    refuses(file, "don't tell the clip", "(8, 16, 16)", "(128, 4, 4)", "source_clip=(F, H, W)")
    other = pretrained.load(file, source_clip=(8, 16, 16), clip=(4, 32, 16))
    assert other.model_config["clip"] == (4, 32, 16)


def test_the_report_accounts_for_everything(tmp_path):
    arrays = below(np.load(GOLDEN / "scenic_import_token_fe_tile.npz"), "source")
    file = write_scenic(tmp_path, arrays)
    loaded = pretrained.load(file, clip=(8, 16, 16), family="factorised_encoder", classes=3)
    report = loaded.report
    origins = {row.origin for row in report.rows} | set(report.dropped)
    assert {name for name in arrays} <= origins
    assert report.dropped["output_projection/kernel"] == "the head is replaced"
    assert report.dropped["global_step"] == "not a parameter of the model"
    assert report.counts["fresh"] == 2 + sum("stage_1/" in r.parameter for r in report.rows)
    text = str(report)
    assert "tubelet/kernel" in text
    assert "inflated" in text
    assert "dropped: the head is replaced" in text
    assert "tubelets of 2 frames" in text
    assert len(report.sha256["checkpoint"]) == 64


def test_what_a_renamed_array_does_comes_in_one_error(folder):
    def change(arrays):
        arrays["vivit.layernorm.biases"] = arrays.pop("vivit.layernorm.bias")
        arrays["classifier.bias"] = np.zeros(4, np.float32)

    refuses(
        spoil(folder, change),
        "3 problems",
        "unexpected: vivit.layernorm.biases [24]",
        "missing: stage_0/norm/bias [24]",
        "wrong shape: classifier.bias",
    )


def test_a_number_of_layers_that_no_file_has(folder):
    def change(arrays):
        arrays["vivit.encoder.layer.999999.output.dense.bias"] = np.zeros(24, np.float32)

    refuses(spoil(folder, change), "41 arrays can't be those of 1000000 layers")


def test_a_clip_that_no_memory_holds(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_frames": 2 * 10**9}))
    refuses(folder, "is the config of these weights right?")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((24, 5), np.complex64), "of complex64"),
        (np.zeros((24, 5), np.int32), "of int32"),
    ],
)
def test_arrays_that_are_no_weights(tmp_path, array, message):
    arrays = below(np.load(GOLDEN / "scenic_import_gap_fsa_tile.npz"), "source")
    file = write_vision_transformer(tmp_path / "a.npz", {**arrays, "head/kernel": array})
    refuses(file, f"not numbers with a fraction: head/kernel {message}")


def test_a_name_that_comes_twice_in_an_archive(tmp_path):
    arrays = below(np.load(GOLDEN / "scenic_import_gap_fsa_tile.npz"), "source")
    file = write_vision_transformer(tmp_path / "a.npz", arrays)
    with zipfile.ZipFile(file) as archive:
        again = archive.read("embedding/bias.npy")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("embedding/bias.npy", again)
    refuses(file, "embedding/bias is in it twice")


@pytest.mark.parametrize("value", ['"["', "[" * 100_000])
def test_configs_that_no_parser_likes(folder, value):
    (folder / "config.json").write_text(value)
    refuses(folder, "config.json")


def test_a_source_that_the_file_is_not():
    refuses(HF, "is not a file of source 'vivit', but one of hf_vivit", source="vivit")
    refuses(HF, "source_clip=(2, 8, 8), but", source_clip=(2, 8, 8))


def test_wrappers_of_names_and_empty_heads(folder):
    def change(arrays):
        for name in list(arrays):
            arrays[f"module.{name}"] = arrays.pop(name)

    wrapped = pretrained.load(spoil(folder, change))
    plain = pretrained.load(HF)
    np.testing.assert_array_equal(wrapped.params["head"]["kernel"], plain.params["head"]["kernel"])

    def empty(arrays):
        arrays["module.classifier.weight"] = np.zeros((0, 24), np.float32)
        arrays["module.classifier.bias"] = np.zeros(0, np.float32)

    none = pretrained.load(spoil(folder, empty))
    assert none.model_config["classes"] == 0
    assert none.report.dropped["classifier.weight"] == "it is empty"

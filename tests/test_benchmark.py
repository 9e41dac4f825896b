import json

import pytest

import vivit
from benchmarks import data_suite
from benchmarks import suites as benchmark
from vivit.attention import KERNELS, PATTERNS
from vivit.cost import count_multiply_adds
from vivit.pretrained.writers import WRITERS

SMALL = {"family": "joint", "width": 8, "depth": 2, "heads": 2, "mlp_dim": 16, "size": ""}
SMALL |= {"clip": (4, 8, 8), "tubelet": (2, 4, 4), "classes": 3}


def attention(pattern="joint", kernel="dense", **fields):
    return benchmark.attention_case(pattern, kernel, (2, 4, 4), heads=2, channels=8, **fields)


@pytest.mark.parametrize("name", ["joint", "window(1, 2, 2)", "trajectory"])
def test_attention_is_measured(name):
    result = benchmark.measure(attention(name), repeats=2)
    assert result["seconds"] > 0
    assert len(result["seconds_of_runs"]) == 2
    assert result["temporary_bytes"] > 0
    scores = PATTERNS[name].scores(2, 4, 4, **PATTERNS[name].options)
    products = 2 * 2 * 8 * scores
    if name == "trajectory":  # and its three projections of 16 x 16: of pools, keys and values
        products += (2 * 2 + 1) * 32 * 16 * 16 - 0
    assert result["multiply_adds"] == products
    assert result["gflops"] == pytest.approx(6 * result["multiply_adds"] / result["seconds"] / 1e9)
    assert result["mfu"] is None


def test_weights_are_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "BASE", {**SMALL, "heads": 2})
    result = benchmark.measure({"kind": "weights", "form": "portable"}, repeats=1)
    assert result["file_bytes"] > 0
    assert min(result["seconds"], result["write_seconds"]) > 0
    assert "peak_times_file" in result


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_models_are_measured(mode):
    case = json.loads(json.dumps(benchmark.model_case(mode, 2, **SMALL)))
    result = benchmark.measure(case, repeats=1)
    assert result["seconds"] > 0
    assert result["multiply_adds"] == 2 * count_multiply_adds(vivit.build(case["model"]))


def test_what_does_not_fit_is_compiled_and_not_run(monkeypatch):
    monkeypatch.setattr(benchmark, "_memory", lambda: 1000)
    result = benchmark.measure(attention(), repeats=1)
    assert result["temporary_bytes"] > 0
    assert "seconds" not in result
    assert "of this machine's 0.0 GB" in result["not_run"]


def test_a_suite_runs_in_processes_and_writes_its_table(tmp_path, monkeypatch, capsys):
    """A case that fails is in the table, with its reason, and does not stop the others."""
    cases = [attention(), attention("window"), attention("time", kernel="ring")]
    monkeypatch.setitem(benchmark.SUITES._items, "tiny", lambda: cases)
    benchmark.main(["tiny", "--out", str(tmp_path), "--repeats", "1"])
    written = json.loads((tmp_path / "tiny.json").read_text())
    good, too_large, no_mesh = written["records"]
    assert good["seconds"] > 0
    assert "larger than the grid" in too_large["error"]
    assert "set parallel.sequence" in no_mesh["error"]
    text = (tmp_path / "tiny.md").read_text()
    assert "python -m benchmarks.suites tiny --repeats 1" in text
    assert "| joint, dense, N=32, float32 |" in text
    assert "larger than the grid" in text
    with pytest.raises(ValueError, match="no case of tiny has 'nothing' in its name"):
        benchmark.main(["tiny", "--only", "nothing"])


@pytest.mark.parametrize("name", list(benchmark.SUITES))
def test_every_suite_asks_for_what_there_is(name):
    cases = list(benchmark.SUITES[name]())
    assert len({benchmark.name_of(case) for case in cases}) == len(cases)
    for case in cases:
        if case["kind"] == "model":
            vivit.build({**case["model"], "kernel": "chunked", "dtype": "bfloat16"})
        elif case["kind"] == "weights":
            assert case["form"] in WRITERS
        elif case["kind"] in ("data", "run"):
            assert case["data"] in data_suite.SPECS
        else:
            PATTERNS[case["pattern"]].check(*case["grid"], **PATTERNS[case["pattern"]].options)
            assert case["kernel"] in KERNELS


def test_the_suite_of_data_measures_each_format_at_two_numbers_of_workers():
    names = [benchmark.name_of(case) for case in benchmark.SUITES["data"]()]
    assert len(names) == len(set(names)) == 8
    assert "raw_square, 2 workers" in names


@pytest.mark.slow
def test_a_case_of_data_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(data_suite, "SEGMENTS", 9)
    monkeypatch.setattr(data_suite, "BATCHES", {"jpeg": 1})
    monkeypatch.setattr(data_suite.tempfile, "gettempdir", lambda: str(tmp_path))
    result = data_suite.measure({"kind": "data", "data": "jpeg", "workers": 0}, repeats=1)
    # Not a bound: how fast this machine is at the moment is not what is tested.
    assert result["share_of_limit"] > 0
    share = result["clips_per_second"] / result["limit_clips_per_second"]
    assert result["share_of_limit"] == pytest.approx(share)


@pytest.mark.slow
def test_a_training_run_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(data_suite, "SEGMENTS", 9)
    monkeypatch.setattr(data_suite.tempfile, "gettempdir", lambda: str(tmp_path))
    model = {**SMALL, "clip": (4, 224, 224), "tubelet": (2, 56, 56), "classes": 1}
    case = {"kind": "run", "data": "jpeg", "workers": 0, "batch": 1, "model": model}
    result = benchmark.measure(case, repeats=1)
    assert result["clips_per_second"] > 0
    assert 0 <= result["waiting"] < 1


def test_a_case_that_runs_is_not_compiled_for_a_target():
    with pytest.raises(ValueError, match="cases of 'weights' run"):
        benchmark.measure({"kind": "weights", "form": "portable"}, repeats=1, target="h100:1")


@pytest.mark.compile
@pytest.mark.parametrize(
    "case", [attention(dtype="bfloat16"), benchmark.model_case("train", **SMALL)]
)
def test_a_case_is_compiled_for_a_gpu_and_not_run(case):
    result = benchmark.measure(case, repeats=1, target="h100:1")
    assert result["temporary_bytes"] > 0
    assert "seconds" not in result

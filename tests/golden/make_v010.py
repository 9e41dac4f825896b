"""Writes tests/golden/v010 with the code of version 0.1.0: what tests/test_v010.py compares with.

    cd CHECKOUT_OF_0.1.0 && python .../tests/golden/make_v010.py OUT [PART ...]

It runs with vivit of the current folder, on a CPU. Parts: data, losses, runs, sources, models.
"""

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, os.getcwd())
os.environ["JAX_PLATFORMS"] = "cpu"
# As in tests/conftest.py: tiny models spend their time in the compiler.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from v010 import measure
from v010.cases import (
    RUN,
    STAGES,
    batch_cases,
    loss_cases,
    model_cases,
    source_cases,
)

GOLDEN = Path(__file__).resolve().parent
BASE = os.getcwd()
NO_MAPS = ("kernel", "remat", "training", "activation", "pixels", "scan", "bfloat16", "no head")


def model_numbers(build, case):
    """Returns all the numbers of one model, in full.

    case: `init` and `maps` say whether those are among them. Gradients are not where tokens compete
    in a maximum: XLA gets them wrong at the optimisation level of the tests.
    """
    model, clip = build(case["model"]), tuple(case["model"]["clip"])
    how = {key: case[key] for key in ("train", "uint8", "gradients") if key in case}
    found = measure.outputs(model, clip, **how)
    if case["init"]:
        found |= measure.initial(model, clip)
    if case["maps"]:
        found |= measure.maps(model, clip)
    return found


def models(out):
    import vivit

    cases, numbers, trees = model_cases(), {}, {}
    for name, case in cases.items():
        shapes = measure.shapes_of(vivit.build(case["model"]), case["model"]["clip"])
        tree = measure.describe(shapes)
        case["tree"] = hashlib.sha256(tree.encode()).hexdigest()[:12]
        case["init"] = case["tree"] not in trees
        case["maps"] = not name.startswith(NO_MAPS)
        if "max" in str(case["model"]):
            case["gradients"] = False
        trees[case["tree"]] = tree
        full = model_numbers(vivit.build, case)
        numbers |= {f"{name}/{key}": value for key, value in measure.shorten(full).items()}
        print(name, flush=True)
    write_npz(out / "models.npz", numbers)
    write_json(out / "models.json", cases)
    (out / "trees.json.xz").write_bytes(lzma.compress(json.dumps(trees, indent=0).encode()))


def sources(out):
    import vivit
    from vivit import pretrained

    cases, numbers = source_cases(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.items():
            path = measure.source_file(case, Path(folder), GOLDEN)
            loaded = pretrained.load(path, **case["options"])
            full = measure.loaded(loaded, vivit.build)
            numbers |= {f"{name}/{k}": v for k, v in measure.shorten(full).items()}
            print(name, flush=True)
    write_npz(out / "sources.npz", numbers)
    write_json(out / "sources.json", cases)


def batch_numbers(case):
    """Returns batches of two training steps, raw and augmented, and of an evaluation."""
    from vivit.data.augment import Augment
    from vivit.data.pipeline import Data
    from vivit.data.views import Views

    data, (frames, *size) = Data(**case["data"]), case["clip"]
    split, held_out, found = data.open("train"), data.open("validation"), {}
    augment = Augment(**case["augment"]).build(split, tuple(size), canvas=data.canvas)
    batches = data.train(split, frames=frames, seed=5, start=1)
    for step in (1, 2):
        batch = next(batches)
        found |= {f"train {step}/{key}": value for key, value in batch.items()}
        batch = jax.jit(augment)(batch, jax.random.key(step))
        found |= {f"augmented {step}/{key}": np.asarray(value) for key, value in batch.items()}
    batches.close()
    views = Views(**data.views)
    predict = views.build(held_out, tuple(size))
    batches = data.evaluate(held_out, frames=frames, views=views.temporal)
    for i, batch in enumerate(batches):
        found |= {f"evaluation {i}/{key}": value for key, value in batch.items()}
        see = jax.jit(lambda clips, extents: predict(measure.see, clips, extents))
        found[f"evaluation {i}/seen"] = np.asarray(see(batch["clips"], batch["extents"]))
    batches.close()
    return found


def data(out):
    """Writes the data sets, data.tar.xz, and their batches."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root)
        pack(out / "data.tar.xz", root)
        os.chdir(root)
        numbers = {}
        for name, case in batch_cases().items():
            numbers |= measure.shorten_clips(name, batch_numbers(case))
            print(name, flush=True)
        write_npz(out / "batches.npz", numbers)
    write_json(out / "batches.json", batch_cases())


def make_data(root):
    """Writes films/, videos with a manifest, and data/, data sets prepared from it."""
    import vivit.data.published  # noqa: F401  registers the formats of annotations
    from vivit.data.convert import convert
    from vivit.data.prepare import prepare_manifest
    from vivit.data.staging import Spec

    from tests.data.films import film
    from vivit.data import moving_digits, sources

    moving_digits.SPLITS = {"train": 12, "validation": 6, "test": 7}
    sources.prepare("moving_digits", root / "data")
    lengths = iter(range(9, 30))
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for name in ("up", "down"):
            (root / "films" / split / name).mkdir(parents=True)
            for i in range(count):
                path = root / "films" / split / name / f"{i}.mp4"
                film(path, frames=next(lengths), options={"bf": "2", "g": "6"})
    convert("folder", root / "films", [], root / "films/films.csv")
    for name in ("h264", "jpeg", "raw"):
        spec = Spec(format=name, short_side=48)
        prepare_manifest(root / "films/films.csv", root / "data", name=f"films_{name}", spec=spec)


def pack(path, root):
    """Writes a tar.xz of all files below a folder, the same for the same files."""

    def plain(info):
        info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
        return None if "tensorboard" in info.name or info.name.endswith(".lock") else info

    with tarfile.open(path, "w:xz", preset=9) as archive:
        for name in sorted(entry.name for entry in root.iterdir()):
            archive.add(root / name, arcname=name, filter=plain)


def overrides(case):
    return [f"--config.{key}={value}" for key, value in case.items() if key != "devices"]


def run(module, *words, devices=1, folder="."):
    """Runs a command of 0.1.0 in a folder."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": BASE}
    subprocess.run([sys.executable, "-B", "-m", module, *words], check=True, cwd=folder,
                   env=environment, capture_output=True)  # fmt: skip


def read_losses(workdir):
    """Returns loss and gradient norm of every step, and the validation scores."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [(x["loss"], x["grad_norm"]) for x in lines if x["split"] == "train"]
    scores = [(x["loss"], x["top1"]) for x in lines if x["split"] == "validation"]
    return {"steps": steps, "scores": scores}


def losses(out):
    """Writes the losses of short runs on the data of data.tar.xz."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(out / "data.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        for name, case in loss_cases().items():
            words = [f"--config={BASE}/configs/common.py", "--workdir=run", *overrides(case)]
            run("vivit.train", *words, devices=case["devices"], folder=folder)
            config = json.loads(Path(folder, "run/config.json").read_text())
            losses = read_losses(Path(folder, "run"))
            found[name] = {"devices": case["devices"], **losses, "config": config}
            shutil.rmtree(Path(folder, "run"))
            print(name, found[name]["steps"][-1], flush=True)
    (out / "losses.json").write_text(json.dumps(found) + "\n")


def runs(out):
    """Writes two runs with their checkpoints and scores, runs.tar.xz."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with tarfile.open(out / "data.tar.xz") as archive:
            archive.extractall(root, filter="data")
        (root / "stages.py").write_text(STAGES.lstrip())
        words = [f"--config={BASE}/configs/common.py", *overrides(RUN)]
        run("vivit.train", *words, "--workdir=runs/plain", folder=root)
        run("vivit.train", "--config=stages.py", "--workdir=runs/stages", folder=root)
        for name in ("plain", "stages"):
            run("vivit.evaluate", f"--workdir=runs/{name}", "--checkpoint=latest", folder=root)
        run("vivit.evaluate", "--workdir=runs/plain", "--views=1x3", "--checkpoint=3", folder=root)
        numbers = {}
        os.chdir(root)
        for name in ("plain", "stages"):
            numbers |= run_numbers(Path("runs", name))
        os.chdir(BASE)
        write_npz(out / "runs.npz", numbers)
        for entry in ("data", "films"):
            shutil.rmtree(root / entry)
        for note in root.rglob("commit_success.txt"):  # orbax writes where it was
            note.write_text(note.read_text().replace(str(root), "."))
        pack(out / "runs.tar.xz", root)


def run_numbers(workdir):
    """Returns what analysis finds in a run: parameters, clips, logits, rollout."""
    from vivit.analysis import capture, open_run, rollout

    opened = open_run(workdir, checkpoint="latest")
    clips, labels = opened.examples(opened.one_of_each_class(4))
    captured = capture(opened.model, opened.params, clips)
    flat = flatten_dict(opened.params, sep="/")
    found = {f"params/{path}": flat[path] for path in sorted(flat)}
    found |= {"logits": captured.logits, "rollout": rollout(captured), "labels": labels}
    short = measure.shorten({key: np.asarray(value) for key, value in found.items()})
    return {f"{workdir.name}/{key}": value for key, value in short.items()}


def write_npz(path, numbers):
    """Writes arrays; float32 keeps more digits than the comparison looks at."""
    small = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in numbers.items()}
    np.savez_compressed(path, **small)


def write_json(path, values):
    path.write_text(json.dumps(values, indent=1) + "\n")


PARTS = {"data": data, "losses": losses, "runs": runs, "sources": sources, "models": models}


def main(out, *parts):
    import vivit

    assert Path(vivit.__file__).is_relative_to(BASE), vivit.__file__
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    for part in parts or PARTS:
        PARTS[part](out)
        os.chdir(BASE)


if __name__ == "__main__":
    main(*sys.argv[1:])

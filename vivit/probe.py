"""python -m vivit.probe --workdir=RUN --label=LABEL: what frozen features say of a label.

Probes are fitted on the features of training clips, their options are chosen on the validation
split, and the accuracy is that on the test split, once. The same model with random parameters is
probed too, and so are the pixels of small frames and their differences, as baselines.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import vivit.pretraining.attentive  # noqa: F401 registers a probe
from vivit.cli import make_parser, run_command, show_log
from vivit.config import parse
from vivit.data.split import Split, find_classes, some_numbers
from vivit.encoder import Encoder
from vivit.features import FeatureFolder, add_encoder_arguments, chosen_encoder
from vivit.io import read_json, write_json
from vivit.pretraining.probes import PROBES, Features, KeptTokens, Probe, fit
from vivit.run import Run

DEFAULT = ("linear", "knn")
BASELINES = {"pixels": "pixels", "differences": "frame differences"}  # kind -> row
MEMORY = 2**34  # bytes of tokens, at most
Tables = dict[str, dict[str, Probe]]


def probe(
    encoder: Encoder,
    *,
    label: str,
    clips: int = 0,
    probes: Sequence[str] = DEFAULT,
    views: str = "1x1",
    splits: Sequence[str] = (),
    random_seed: int = 0,
    stream: bool = False,
) -> Tables:
    """Returns "trained", "random SEED", "pixels" and "frame differences" -> name of a probe -> its
    accuracies. The last two are of grey frames of 8 x 8 pixels: they are missing of probes that
    need tokens, and the last one of clips of one frame.

    clips: how many labelled clips of the training split the probes get, 0 for all. views: of the
    validation and test clips, such as "4x3". splits: to fit to, to choose by and to test on; those
    of the config and "test" if there are none. stream: reads and encodes the clips whenever a
    probe needs their tokens, which are otherwise held in memory.

    Raises ValueError for a label that the data lack, and for more tokens than fit into memory.
    """
    names = splits or (*encoder.data.splits[:2], "test")
    first, *held_out = (encoder.open(name) for name in names)
    opened = [first.some(clips), *held_out]
    labels = [_classes_of(split, label) for split in opened]
    tokens = any(PROBES[name].tokens for name in probes)
    if tokens and not stream:
        _check_memory(encoder, opened, views)
    tables, baselines = {}, {}
    kinds = ("clip", "token") if tokens and not stream else ("clip",)
    pixels = tuple(BASELINES) if encoder.model.config.clip[0] > 1 else ("pixels",)  # one frame
    random = encoder.with_random_parameters(random_seed)
    for name, which, of_pixels in (
        ("trained", encoder, pixels),  # these are read once
        (f"random {random_seed}", random, ()),
    ):
        features, others = [], {kind: [] for kind in of_pixels}
        for i, (split, of_clips) in enumerate(zip(opened, labels, strict=True)):
            of_split = views if i else "1x1"
            rows = which.read(split, (*kinds, *of_pixels), views=of_split)
            numbers = rows["indices"].astype(int)
            found = KeptTokens(rows["token"]) if "token" in rows else None
            if tokens and stream:  # of the clips that can be read
                found = which.tokens(split.at(numbers), of_split)
            values = rows["clip"].astype(np.float64)
            features.append(Features(values, of_clips[numbers], found))
            for kind in of_pixels:
                others[kind].append(Features(rows[kind].astype(np.float64), of_clips[numbers]))
        tables[name] = {kind: fit(kind, *features) for kind in probes}
        without = [kind for kind in probes if not PROBES[kind].tokens]
        baselines |= {BASELINES[of]: {kind: fit(kind, *parts) for kind in without}
                      for of, parts in others.items() if without}  # fmt: skip
    return tables | baselines


def probe_folders(
    folders: Mapping[str, FeatureFolder],
    *,
    label: str,
    splits: Sequence[str],
    clips: int = 0,
    probes: Sequence[str] = DEFAULT,
) -> Tables:
    """Returns name of a folder of features -> name of a probe -> its accuracies.

    Raises ValueError for folders that are not of the same architecture, kind and data.
    """
    first, *others = folders.values()
    for other in others:
        _check_comparable(first, other)
    return {
        name: {kind: fit(kind, *_of_folder(folder, label, splits, clips)) for kind in probes}
        for name, folder in folders.items()
    }


def _of_folder(
    folder: FeatureFolder, label: str, splits: Sequence[str], clips: int
) -> list[Features]:
    found = []
    for i, split in enumerate(splits):
        values, classes, _ = folder.read(split, label)
        if clips and not i:
            chosen = list(some_numbers(len(classes), clips, of=f"split {split!r}"))
            values, classes = values[chosen], classes[chosen]
        tokens = KeptTokens(values) if values.ndim > 3 else None
        if tokens is not None:  # what a head would get of them is taken to be their mean
            values = values.astype(np.float64).mean(axis=(2, 3))
        found.append(Features(values.astype(np.float64), classes, tokens))
    return found


def _check_comparable(one: FeatureFolder, other: FeatureFolder) -> None:
    key = lambda folder: {
        "model": folder.about["encoder"]["model"],
        **{k: folder.about[k] for k in ("kind", "views", "data")},
    }
    a, b = key(one), key(other)
    different = [name for name in a if a[name] != b[name]]
    if different:
        raise ValueError(
            f"the features in {other.folder} are of another {' and '.join(different)} than those "
            f"in {one.folder}, so they say nothing about each other"
        )


def _classes_of(split: Split, label: str) -> np.ndarray:
    """Returns the class number of each clip. Raises ValueError where a clip has none or several."""
    if find_classes(split.name, split.classes, label).several:
        raise ValueError(f"a clip may have several classes of {label!r}; probe a label with one")
    found = np.array([int(split.reader.label(i, label)) for i in range(len(split))])
    if (found < 0).any():
        raise ValueError(
            f"{(found < 0).sum()} clips of split {split.split!r} of {split.name} have no "
            f"{label!r}; a probe needs splits that are labelled"
        )
    return found


def _check_memory(encoder: Encoder, splits: Sequence[Split], views: str) -> None:
    """Raises ValueError if the tokens of all clips would not fit into memory."""
    count, config = len(splits[0]), encoder.model.config
    held_out = sum(map(len, splits[1:])) * int(np.prod([int(n) for n in views.split("x")]))
    size = (count + held_out) * int(np.prod(config.grid)) * config.width * 4
    if size > MEMORY:
        raise ValueError(
            f"the tokens of all clips take {size / 1e9:.0f} GB; give fewer --clips, or --stream to "
            "encode them in each epoch"
        )


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.probe",
        __doc__,
        "python -m vivit.probe --workdir=runs/mae_digits --label=motion --clips=80",
        "python -m vivit.probe --features features/mae features/random --label=motion",
    )
    which = add_encoder_arguments(parser)
    which.add_argument(
        "--features", metavar="FOLDER", nargs="+", help="what vivit.features wrote, to compare"
    )
    parser.add_argument("--label", required=True, help="what the probes predict")
    parser.add_argument(
        "--clips", type=int, default=0, help="labelled clips that the probes get (default: all)"
    )
    parser.add_argument(
        "--probes", nargs="+", default=list(DEFAULT), metavar="NAME",
        help=f"{', '.join(PROBES)}, with options in brackets (default: {' '.join(DEFAULT)})",
    )  # fmt: skip
    parser.add_argument(
        "--views", default="1x1", help="4x3 to test on 4 clips of each video in 3 crops"
    )
    parser.add_argument(
        "--splits", default="", metavar="A,B,C", help="for training, choice and test"
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, help="of the model with random parameters (0)"
    )
    parser.add_argument(
        "--stream", action="store_true",
        help="decode and encode clips again in each epoch, so that tokens need not fit in memory",
    )  # fmt: skip
    show_log()
    arguments, config = parse(parser, argv)
    common = {"label": arguments.label, "clips": arguments.clips, "probes": arguments.probes}
    splits = arguments.splits.split(",") if arguments.splits else []
    if len(splits) not in (0, 3):
        raise ValueError(f"--splits={arguments.splits} must be three: to fit, to choose, to test")
    if arguments.features:
        if arguments.stream:
            raise ValueError("--stream encodes clips, and --features has no encoder")
        folders = {folder: FeatureFolder(Path(folder)) for folder in arguments.features}
        splits = splits or ["train", "validation", "test"]
        tables = probe_folders(folders, splits=splits, **common)
        show(tables, arguments.probes)
        return
    encoder = chosen_encoder(arguments, config)
    common |= {"views": arguments.views, "splits": splits, "stream": arguments.stream}
    tables = probe(encoder, random_seed=arguments.random_seed, **common)
    show(tables, arguments.probes)
    if arguments.workdir:
        run = Run(arguments.workdir, arguments.checkpoint)
        print(f"-> {write(run, tables, arguments)}")


def show(tables: Tables, probes: Sequence[str]) -> None:
    """Prints the accuracies on the test split."""
    width = max(map(len, tables))
    print(f"{'encoder':{width}}" + "".join(f"{kind.partition('(')[0]:>30}" for kind in probes))
    for name, found in tables.items():
        cells = [f"{found[k].test:.2%} ({found[k].option})" if k in found else "" for k in probes]
        print(f"{name:{width}}" + "".join(f"{cell:>30}" for cell in cells))


def write(run: Run, tables: Tables, arguments: argparse.Namespace) -> Path:
    """Writes RUN/probe/LABEL_STEP_CLIPS_VIEWS.json, next to what the file has of other probes and
    of other random parameters; returns its path."""
    which, splits = arguments.clips or "all", arguments.splits.replace(",", "-")
    parts = (arguments.label, f"{run.step:08d}", str(which), arguments.views, splits)
    path = run.folder / "probe" / f"{'_'.join(filter(None, parts))}.json"
    found = read_json(path) if path.exists() else {}
    for name, probes in tables.items():
        found[name] = {**found.get(name, {}), **{k: x._asdict() for k, x in probes.items()}}
    options = {key: getattr(arguments, key) for key in ("label", "clips", "views")}
    write_json(path, {**options, "step": run.step, **found}, indent=2)
    return path


if __name__ == "__main__":
    run_command(main)

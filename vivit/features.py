"""python -m vivit.features --workdir=RUN --out=FOLDER: writes the features of a whole data set.

Features are what a head would get of each clip, or all tokens of the encoder. They are written in
parts: the same command resumes where it was stopped.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

import vivit
from vivit.cli import add_checkpoint_argument, make_parser, run_command, show_log
from vivit.config import parse
from vivit.data.split import Split
from vivit.encoder import KINDS, Encoder, encoder_of_run, encoder_of_weights
from vivit.io import locked, read_json, write_json
from vivit.processes import add_process_arguments, connected, on_first, require_shared
from vivit.run import Run
from vivit.settings import Config

log = logging.getLogger(__name__)

ABOUT = "features.json"
PART_BYTES, PART_CLIPS = 2**28, 4096  # of a part, at most
DTYPES = ("float32", "float16")
FORMATS = ("parquet", "npz")


def write_features(
    encoder: Encoder,
    out: str | Path,
    *,
    splits: Sequence[str],
    kind: str = "clip",
    views: str = "1x1",
    dtype: str = "float32",
    form: str = "parquet",
) -> Path:
    """Writes FOLDER/SPLIT/part_00000.parquet ... and features.json; returns the folder.

    Rows have "index", "id", "path", the name of the class of each label, and "features". With
    several views a row has the features of all of them, and with tokens those of all tokens:
    "shape" in features.json says how, [V, ...]. Parts that are there are kept.

    Raises ValueError for a folder of other features.
    """
    folder = Path(out)
    opened = {name: encoder.open(name) for name in splits}
    about = {
        "kind": kind,
        "shape": encoder.shape(kind, views),
        "views": views,
        "dtype": dtype,
        "format": form,
        "encoder": encoder.origin,
        "data": {"name": encoder.data.name, "sampling": asdict(encoder.data.sampling)},
    }
    about = json.loads(json.dumps(about))  # as the file has it
    on_first(lambda: _claim(folder, about))
    require_shared(folder / ABOUT)
    clips = _clips_of_part(about, encoder.data.batch_size)
    for name, split in opened.items():
        on_first(partial(_claim_split, folder / name, split))
        starts = range(0, len(split), clips)
        for i, start in enumerate(starts):
            path = folder / name / f"part_{i:05d}.{form}"
            if path.exists():
                continue
            part = split.at(range(start, min(start + clips, len(split))))
            rows = encoder.read(part, (kind,), views=views)
            write = partial(_write_part, path, part, rows["indices"], rows[kind], start, about)
            on_first(write)
            log.info("%s: part %d of %d", name, i + 1, len(starts))
        on_first(lambda n=name, s=split: write_json(folder / n / "split.json", _described(s)))
    return folder


def _described(split: Split) -> dict[str, Any]:
    classes = {label: list(x.names) for label, x in split.classes.items()}
    return {"clips": len(split), "digest": split.digest, "classes": classes}


def _clips_of_part(about: Mapping[str, Any], batch_size: int) -> int:
    """Returns the clips of a part, a multiple of the batch size."""
    of_clip = int(np.prod(about["shape"])) * np.dtype(about["dtype"]).itemsize
    clips = min(PART_CLIPS, PART_BYTES // of_clip)
    return max(1, clips // batch_size) * batch_size


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Makes a folder that of these features."""
    path = folder / ABOUT
    if path.exists():
        found = read_json(path)
        other = [key for key in about if found.get(key) != about[key]]
        if other:
            raise ValueError(
                f"{folder} has features of another {', '.join(other)}; name a new folder, or "
                "repeat its command to resume"
            )
        return
    if folder.exists() and any(p for p in folder.iterdir() if p.name != ".lock"):
        raise ValueError(f"{folder} has other files; name a new folder")
    write_json(path, {**about, "vivit": vivit.__version__})


def _claim_split(folder: Path, split: Split) -> None:
    """Makes a folder that of a split. Raises ValueError if it has features of other clips."""
    path = folder / "clips.json"
    if not path.exists():
        write_json(path, {"digest": split.digest})
    elif read_json(path)["digest"] != split.digest:
        raise ValueError(
            f"{folder} has features of other clips: the data of split {split.split!r} have changed "
            "since; name a new folder"
        )


def _write_part(
    path: Path,
    split: Split,
    indices: np.ndarray,
    features: np.ndarray,
    start: int,
    about: Mapping[str, Any],
) -> None:
    numbers, reader = indices.astype(int).tolist(), split.reader
    columns: dict[str, Any] = {
        "index": start + np.array(numbers, np.int64),
        "id": [reader.id(i) for i in numbers],
        "path": [reader.name(i) for i in numbers],
    }
    for label, classes in split.classes.items():
        columns[label] = [_names(reader.label(i, label), classes.names) for i in numbers]
    features = features.astype(about["dtype"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if about["format"] == "npz":
        with open(part, "wb") as file:
            arrays: Any = {name: _as_array(column) for name, column in columns.items()}
            np.savez(file, features=features, **arrays)
    else:
        import pyarrow as pa  # training does not need it
        from pyarrow import parquet

        flat = pa.array(features.reshape(-1))
        size = int(np.prod(features.shape[1:]))
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, size)
        parquet.write_table(pa.table(columns), part)
    part.replace(path)


def _names(found: Any, names: Sequence[str]) -> Any:
    """Returns the name of a class, those of several, or None of a clip without one."""
    if np.ndim(found):
        return [names[k] for k in found]
    return names[int(found)] if int(found) >= 0 else None


def _as_array(column: Any) -> np.ndarray:
    """Returns a column without Python objects; names of several classes are joined by commas."""
    if isinstance(column, np.ndarray):
        return column
    return np.array(["" if x is None else x if isinstance(x, str) else ",".join(x) for x in column])


@dataclass(frozen=True)
class FeatureFolder:
    """A folder that `write_features` made.

    Raises ValueError where it is not one.
    """

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        path = self.folder / ABOUT
        if not path.exists():
            raise ValueError(
                f"no features in {self.folder}; write them with: python -m vivit.features "
                f"--workdir=RUN --out={self.folder}"
            )
        return read_json(path)

    def read(
        self, split: str, label: str
    ) -> tuple[Shaped[np.ndarray, "N V ..."], Shaped[np.ndarray, " N"], tuple[str, ...]]:
        """Returns the features of a split, the class number of each clip, and the classes' names.

        Raises ValueError if the split is not whole, or not labelled.
        """
        described = self.folder / split / "split.json"
        if not described.exists():
            found = sorted(path.parent.name for path in self.folder.glob("*/split.json"))
            raise ValueError(
                f"{self.folder} has no features of the whole split {split!r}; it has those of: "
                f"{', '.join(found) or 'none'}"
            )
        classes = read_json(described)["classes"]
        if label not in classes:
            raise ValueError(
                f"split {split!r} in {self.folder} has no label {label!r}; it has: "
                f"{', '.join(classes) or 'none'}"
            )
        parts = [self._part(path, label) for path in sorted(described.parent.glob("part_*"))]
        names = np.concatenate([part[1] for part in parts])
        numbers = {name: i for i, name in enumerate(classes[label])}
        wrong = [name for name in set(names.tolist()) if name not in numbers]
        if wrong:
            raise ValueError(
                f"split {split!r} in {self.folder}: a probe needs one class of {label!r} for each "
                "clip, and some have none or several"
            )
        found = np.array([numbers[name] for name in names])
        return np.concatenate([part[0] for part in parts]), found, tuple(classes[label])

    def _part(self, path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
        shape = (-1, *self.about["shape"])
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return arrays["features"].reshape(shape), arrays[label]
        from pyarrow import parquet

        table = parquet.read_table(path, columns=["features", label])
        flat = table["features"].combine_chunks().flatten().to_numpy()
        names = ["" if not isinstance(x, str) else x for x in table[label].to_pylist()]
        return flat.reshape(shape), np.array(names)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.features",
        __doc__,
        "python -m vivit.features --workdir=runs/mae_digits --out=features/mae",
        "python -m vivit.features --weights=weights/videomae --config=configs/ssv2.py --out=out",
    )
    _add_arguments(parser)
    show_log()
    arguments, config = parse(parser, argv)
    with connected(arguments), ExitStack() as stack:
        out = arguments.out
        on_first(lambda: stack.enter_context(locked(out, doing="writing features")))
        encoder = chosen_encoder(arguments, config)
        if arguments.random_seed is not None:
            encoder = encoder.with_random_parameters(arguments.random_seed)
        splits = arguments.split.split(",") if arguments.split else [*encoder.data.splits, "test"]
        options = {"kind": arguments.kind, "views": arguments.views, "dtype": arguments.dtype}
        options |= {"splits": list(dict.fromkeys(splits)), "form": arguments.format}
        print(f"-> {write_features(encoder, out, **options)}")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> Any:
    """Adds --workdir or --weights, which `chosen_encoder` reads; returns their group."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="RUN", help="the folder of a run")
    which.add_argument(
        "--weights", metavar="PATH", help="a file or a folder of weights; --config says what data"
    )
    add_checkpoint_argument(parser)
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data sets are now")
    return which


def chosen_encoder(arguments: argparse.Namespace, config: Config | None) -> Encoder:
    """Returns the encoder that the arguments name. Raises ValueError for weights without data."""
    if arguments.weights is None:
        run = Run(arguments.workdir, arguments.checkpoint, data_root=arguments.data_root)
        return encoder_of_run(run)
    if config is None:
        raise ValueError("--weights needs --config=FILE, whose data are read")
    if arguments.data_root is not None:
        config = replace(config, data=replace(config.data, root=arguments.data_root))
    return encoder_of_weights(arguments.weights, config)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder_arguments(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where features are written")
    parser.add_argument("--split", default="", help="splits, with commas (default: all)")
    parser.add_argument(
        "--kind",
        choices=sorted(KINDS),
        default="clip",
        help="of each clip (default), token, or the mean token of all layers",
    )
    parser.add_argument("--views", default="1x1", help="4x3 for 4 clips of each video in 3 crops")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the features")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the parts")
    parser.add_argument(
        "--random-seed", type=int, metavar="N", help="random parameters instead, as a baseline"
    )
    add_process_arguments(parser)


if __name__ == "__main__":
    run_command(main)

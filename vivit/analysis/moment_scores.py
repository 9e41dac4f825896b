"""python -m vivit.analysis.moment_scores --workdir=RUN: are the moments and regions those of truth?

For data sets that say when and where the object of the label moves, as long_digits: over the clips
of a split, whether the best frame is one in which it moves (HIT@1), Kendall's tau of the frames'
values with that, and in these frames the pointing game in space.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from vivit.analysis.attribution import check_methods
from vivit.analysis.localisation import hits_of_largest
from vivit.analysis.moments import OVERLAP, values_of
from vivit.analysis.statistics import mean_with_interval
from vivit.analysis.windows import seen_box
from vivit.cli import add_run_arguments, make_parser, new_file, run_command, show_log, split_names
from vivit.io import write_json
from vivit.run import Run

USUAL = ("random", "uniform", "attention", "rollout", "gradient_attention", "relevance")
Scores = dict[str, Float[np.ndarray, " N"]]


def scores_of(
    grid: Float[np.ndarray, "N Y X"], masks: Bool[np.ndarray, "N H W"]
) -> dict[str, float]:
    """Returns hit, tau and pointing of a film's values. masks: where the object is, which is
    nowhere in frames in which it does not move. Equal values count equally.

    tau: Kendall's tau-b (1945), whose largest value for a sixth of the frames is 0.53.
    """
    from scipy.stats import kendalltau  # slow to import

    true, values = masks.any(axis=(1, 2)), grid.mean(axis=(1, 2))
    tau: Any = kendalltau(values, true)[0]
    rows, columns = (
        ((np.arange(count) + 0.5) * size / count).astype(int)
        for count, size in zip(grid.shape[1:], masks.shape[1:], strict=True)
    )
    middles = masks[:, rows[:, None], columns]
    hits = hits_of_largest(grid.reshape(len(grid), -1), middles.reshape(len(grid), -1))
    return {
        "hit": float(np.asarray(true)[values == values.max()].mean()),
        "tau": 0.0 if np.isnan(tau) else float(tau),
        "pointing": float(hits[true].mean()),
    }


def differences(frames: np.ndarray, grid: tuple[int, int]) -> Float[np.ndarray, "N Y X"]:
    """Returns the mean absolute difference of each frame to the one before, by place: the baseline
    that needs no model. frames: [N, H, W, C]."""
    x = np.asarray(frames, np.float64)
    change = np.abs(np.diff(x, axis=0, prepend=x[:1])).mean(axis=-1)
    rows, columns = (
        np.eye(count)[np.arange(size) * count // size]
        for count, size in zip(grid, change.shape[1:], strict=True)
    )
    sums = np.einsum("nhw,hy,wx->nyx", change, rows, columns)
    return sums / np.outer(rows.sum(axis=0), columns.sum(axis=0))


def measure_run(
    run: Run,
    methods: Sequence[str],
    *,
    clips: int,
    overlap: int = OVERLAP,
    random_seed: int | None = None,
) -> dict[str, Scores]:
    """Returns method -> "hit", "tau" and "pointing" of the first clips of a run's split, for their
    predicted classes; and those of "frame difference".

    random_seed: of random parameters in place of the run's. Raises ValueError for unknown methods,
    and for a data set that does not say where the object is.
    """
    check_methods(methods)
    masks = run.data.masks
    if masks is None:
        raise ValueError(
            f"{run.data.name} {run.data.version} does not say when and where the object moves, as "
            "long_digits does"
        )
    if not 1 <= clips <= len(run.data):
        raise ValueError(f"{clips=} of a split of {len(run.data)} clips")
    params = None if random_seed is None else run.random_params(random_seed)
    found = defaultdict(list)
    for i in tqdm(range(clips), desc="moments", unit="film", leave=False):
        video = run.data.reader.open(i)
        everything = np.arange(len(video.times))
        if seen_box(run, (video.height, video.width)) != (0, 0, video.height, video.width):
            raise ValueError("this is for models that see whole frames")
        truth = masks.open(i).read(everything, None)[..., 0] > 127
        for method in methods:
            values = values_of(run, video, method, overlap=overlap, params=params)
            found[method].append(scores_of(values.grid, truth))
        grid = differences(video.read(everything, None), run.model.config.grid[1:])
        found["frame difference"].append(scores_of(grid, truth))
    return {
        method: {key: np.array([film[key] for film in films]) for key in films[0]}
        for method, films in found.items()
    }


def table(found: dict[str, Scores]) -> str:
    """Returns a Markdown table of the means, with 95 % intervals over clips."""
    lines = ["| method | HIT@1 | Kendall's tau | pointing |", "| --- | --- | --- | --- |"]
    for method, scores in found.items():
        lines.append(f"| {method} | {' | '.join(map(mean_with_interval, scores.values()))} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.moment_scores",
        __doc__,
        "python -m vivit.analysis.moment_scores --workdir=runs/long_digits",
        "python -m vivit.analysis.moment_scores --workdir=runs/long_digits --random-seed=1",
    )
    add_run_arguments(parser)
    usual = ",".join(USUAL)
    parser.add_argument("--methods", default=usual, help=f"with commas ({usual})")
    parser.add_argument("--clips", type=int, default=200, metavar="N", help="the first N (200)")
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, help="clips in which a frame is (%(default)s)"
    )
    parser.add_argument("--random-seed", type=int, metavar="N", help="of random parameters")
    parser.add_argument(
        "--out", metavar="FILE", help="where those of each clip are written as JSON"
    )
    arguments = parser.parse_args(argv)
    show_log()
    out = new_file(arguments.out)
    run = Run(arguments.workdir, arguments.checkpoint, arguments.split, arguments.data_root)
    options: Any = {name: getattr(arguments, name) for name in ("clips", "overlap", "random_seed")}
    found = measure_run(run, split_names(arguments.methods), **options)
    print(table(found))
    if out is not None:
        write_json(out, {k: {key: x.tolist() for key, x in v.items()} for k, v in found.items()})
        print(f"-> {out}")


if __name__ == "__main__":
    run_command(main)

"""python -m vivit.analysis.compare RUN RUN2: how much two runs look and represent alike.

Over the clips of a split: linear CKA between the layers of both, and the correlation of their
attention rollouts. A run with itself (give it twice) shows how its layers are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from vivit.analysis.capture import capture
from vivit.analysis.rollout import rollout
from vivit.analysis.statistics import mean_with_interval
from vivit.cli import add_runs_arguments, make_parser, new_file, run_command, show_log
from vivit.encoder import KINDS, Encoder, Measuring, encoder_of_run
from vivit.io import write_json
from vivit.run import Run


def cka(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "N _"]) -> float:
    """Returns the linear centred kernel alignment of two representations of the same clips: 1 for
    the same up to rotation and scale, and about 0 for unrelated ones.

    Kornblith et al. (1905.00414), section 3, by the unbiased estimate of HSIC of Nguyen et al.
    (2010.15327), equation 3, without which it grows with D / N. Raises ValueError for fewer than
    four clips, and for one that is the same for all of them.
    """
    if len(x) < 4 or len(x) != len(y):
        raise ValueError(f"CKA needs the same clips, at least 4, not {len(x)} and {len(y)}")
    a, b = (np.asarray(z, np.float64) - z.mean(axis=0) for z in (x, y))
    sizes = _hsic(a, a) * _hsic(b, b)
    if sizes <= 0:
        raise ValueError("CKA of a representation that is the same for all clips is not defined")
    return float(_hsic(a, b) / np.sqrt(sizes))


def _hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The estimate from sums over features: the N x N kernels, less their diagonals, are not made,
    which for whole data sets are large."""
    n, diagonal_x, diagonal_y = len(x), (x**2).sum(axis=1), (y**2).sum(axis=1)
    rows_x, rows_y = x @ x.sum(axis=0) - diagonal_x, y @ y.sum(axis=0) - diagonal_y
    pairs = ((x.T @ y) ** 2).sum() - diagonal_x @ diagonal_y
    whole = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return (pairs + whole - 2 / (n - 2) * rows_x @ rows_y) / (n * (n - 3))


def correlations(
    x: Float[np.ndarray, "B T S"], y: Float[np.ndarray, "B T S"]
) -> Float[np.ndarray, " B"]:
    """Returns the correlation (Pearson's) over the tokens of two maps of each clip."""
    flat = [z.reshape(len(z), -1) for z in (x, y)]
    a, b = (z - z.mean(axis=1, keepdims=True) for z in flat)
    sizes = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.maximum(sizes, 1e-30)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same clips. cka: [layers of one, layers of the other], of the mean tokens
    that each block gets. rollouts: the correlation of each clip, None for other grids."""

    clips: int
    cka: Float[np.ndarray, "L L2"]
    rollouts: Float[np.ndarray, " B"] | None

    def table(self) -> str:
        """Returns Markdown."""
        count = range(self.cka.shape[1])
        lines = [
            f"CKA over {self.clips} clips: layers of the first run by those of the second.",
            "",
            f"| | {' | '.join(map(str, count))} |",
            "| --- " * (len(count) + 1) + "|",
        ]
        lines += [
            f"| {i} | {' | '.join(f'{value:.2f}' for value in row)} |"
            for i, row in enumerate(self.cka)
        ]
        if self.rollouts is None:
            return "\n".join([*lines, "", "Rollouts are on different grids."])
        shown = mean_with_interval(self.rollouts)
        return "\n".join([*lines, "", f"Correlation of rollouts: {shown}"])


class _Compared(Measuring):
    """Mean tokens of all layers, and rollout."""

    measured = ("layers", "rollout")

    def outputs(
        self, network: Any, params: Any, batch: Any, *, teacher: Any, rngs: Any = None
    ) -> dict[str, Array]:
        layers = KINDS["layers"](network, {"params": params}, batch["clips"])
        return {"layers": layers, "rollout": rollout(capture(network, params, batch["clips"]))}


def compare_encoders(encoders: Sequence[Encoder], split: str, clips: int | None) -> Comparison:
    """Returns how alike two encoders are in the first clips of a split; None for all of them.

    Raises ValueError if they do not read the same clips.
    """
    found = []
    for encoder in encoders:
        opened = encoder.open(split)
        if clips is not None:
            if not 4 <= clips <= len(opened):
                raise ValueError(f"{clips=} must be 4 to {len(opened)}, the clips of the split")
            opened = opened.at(range(clips))
        rows = encoder.rows(opened, _Compared(), views="1x1")
        names = [opened.reader.id(i) for i in rows["indices"].astype(int).tolist()]
        found.append((names, rows))
    (names, one), (others, other) = found
    if names != others:
        raise ValueError("the runs read other clips; compare runs of one data set")
    layers = [np.moveaxis(rows["layers"], 1, 0) for rows in (one, other)]
    alike = np.array([[cka(x, y) for y in layers[1]] for x in layers[0]])
    same = one["rollout"].shape == other["rollout"].shape
    rollouts = correlations(one["rollout"], other["rollout"]) if same else None
    return Comparison(len(names), alike, rollouts)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.compare",
        __doc__,
        "python -m vivit.analysis.compare runs/seed0 runs/seed1",
        "python -m vivit.analysis.compare runs/joint runs/divided --clips=500 --out=alike.json",
    )
    add_runs_arguments(parser, 2, help="the folders of two runs")
    arguments = parser.parse_args(argv)
    show_log()
    out = new_file(arguments.out)
    encoders = [
        encoder_of_run(Run(workdir, arguments.checkpoint, data_root=arguments.data_root))
        for workdir in arguments.runs
    ]
    found = compare_encoders(encoders, arguments.split, arguments.clips)
    print(found.table())
    if out is not None:
        of_clips = None if found.rollouts is None else found.rollouts.tolist()
        write_json(out, {"cka": found.cka.tolist(), "rollouts": of_clips})
        print(f"-> {out}")


if __name__ == "__main__":
    run_command(main)

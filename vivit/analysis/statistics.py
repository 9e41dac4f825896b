"""python -m vivit.analysis.statistics RUN...: statistics of attention over a whole split.

Of each clip, by layer and head, the mean over its queries of every summary is kept, so that
intervals are over clips. Several runs, as of several seeds, have the mean of
their means, with an interval over the runs.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.analysis.attention import mean_over
from vivit.analysis.capture import capture
from vivit.analysis.kept import check_size
from vivit.analysis.summaries import SUMMARIES, chosen
from vivit.cli import (
    add_runs_arguments,
    make_parser,
    new_file,
    run_command,
    show_log,
    split_names,
)
from vivit.data.split import Split
from vivit.encoder import Encoder, Measuring, encoder_of_run
from vivit.io import write_json
from vivit.run import Run

USUAL = ("distance", "entropy", "to_extra", "to_high_norm", "sinks")
QUERY_AXES = ("t_q", "s_q")


def half_interval(values: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "..."]:
    """Returns half the length of the 95 % interval of the mean of N values, by Student's t; NaN of
    a single one."""
    from scipy.stats import t  # slow to import

    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / count**0.5)


def with_interval(mean: str, half: Any, form: str) -> str:
    """Returns a mean with half its interval, as tables have it; of a single value it has none."""
    return mean if np.isnan(half) else f"{mean} ± {half:{form}}"


def mean_with_interval(values: Float[np.ndarray, " N"]) -> str:
    """Returns the mean of N values with half its interval: "0.839 ± 0.070"."""
    return with_interval(f"{values.mean():.3f}", half_interval(values), ".3f")


@dataclass(frozen=True)
class Statistics:
    """Statistics of the attention in the clips of a split.

    clips: numbers of the clips that could be read. values: attention -> name -> array
    [clip, layer, head, ...], or [run, layer, head, ...] of `over_runs`. axes: name -> the names of
    all axes. of: what the first axis is, "clip" or "run".
    """

    clips: tuple[int, ...]
    values: Mapping[str, Mapping[str, np.ndarray]]
    axes: Mapping[str, tuple[str, ...]]

    def mean(self, attention: str, name: str) -> np.ndarray:
        """Returns the mean over the clips or runs, [layer, head, ...]."""
        return self.values[attention][name].mean(axis=0)

    def half_interval(self, attention: str, name: str) -> np.ndarray:
        """Returns `half_interval` of the clips or runs, [layer, head, ...]."""
        return half_interval(self.values[attention][name])

    def table(self) -> str:
        """Returns a Markdown table of all statistics that are a number of each head: of each layer
        the mean over heads, with the interval of that mean, and the least and the largest head."""
        lines = [
            "| attention | layer | statistic | mean | heads |",
            "| --- | --- | --- | --- | --- |",
        ]
        for attention, named in self.values.items():
            for name, values in named.items():
                if self.axes[name][2:] != ("head",) or not values.size:
                    continue
                of_layer = replace(self, values={attention: {name: values.mean(axis=2)}})
                half = of_layer.half_interval(attention, name)
                heads = self.mean(attention, name)
                for layer, mean in enumerate(of_layer.mean(attention, name)):
                    low, high = heads[layer].min(), heads[layer].max()
                    shown = with_interval(f"{mean:.4g}", half[layer], ".2g")
                    lines.append(
                        f"| {attention} | {layer} | {name} | {shown} | {low:.4g} to {high:.4g} |"
                    )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Returns means and half intervals as lists; null for the interval of a single value."""

        def described(of: str, name: str) -> dict[str, Any]:
            half = self.half_interval(of, name)
            return {
                "axes": self.axes[name][1:],
                "mean": self.mean(of, name).tolist(),
                "half_interval": None if np.isnan(half).any() else half.tolist(),
            }

        attentions = {of: {k: described(of, k) for k in named} for of, named in self.values.items()}
        count = len(next(iter(next(iter(self.values.values())).values())))
        first = next(iter(self.axes.values()))[0]
        return {"over": first, "count": count, "clips": len(self.clips), "attentions": attentions}


def statistics(encoder: Encoder, split: Split, want: Sequence[str] = USUAL) -> Statistics:
    """Returns statistics of an encoder's attention in all clips of a split, batch by batch over the
    devices of the encoder.

    want: names of SUMMARIES; those of queries are averaged over them. Raises ValueError for an
    unknown one, for one of places, which have no mean, and for more than a device's memory holds.
    """
    entries = chosen(want).values()
    rows = encoder.rows(split, _Measured(want), views="1x1")
    clips = tuple(rows["indices"].astype(int).tolist())
    values: dict[str, dict[str, np.ndarray]] = {}
    for key, x in rows.items():
        of, measured, name = key.rpartition("/")
        if measured:
            values.setdefault(of, {})[name] = x
    axes = {
        name: ("clip", "layer", *(axis for axis in of_array if axis not in _averaged(of_array)))
        for entry in entries
        for name, of_array in entry.arrays.items()
    }
    return Statistics(clips, values, axes)


def over_runs(found: Sequence[Statistics]) -> Statistics:
    """Returns statistics whose first axis is the runs, such as those of several seeds: means over
    the clips of each.

    Raises ValueError for runs with other attentions, other statistics or other clips.
    """
    first = found[0]
    if any(s.clips != first.clips for s in found):
        raise ValueError("these runs have statistics of other clips; give the same split and clips")
    shapes = [
        {(of, k): x.shape[1:] for of, v in s.values.items() for k, x in v.items()} for s in found
    ]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            "these runs have models of other layers, heads or patterns; give those of one"
        )
    values = {
        of: {name: np.stack([s.mean(of, name) for s in found]) for name in named}
        for of, named in first.values.items()
    }
    return Statistics(first.clips, values, {k: ("run", *v[1:]) for k, v in first.axes.items()})


class _Measured(Measuring):
    """Means over the queries of summaries of all attentions."""

    def __init__(self, want: Sequence[str]) -> None:
        self.measured = tuple(want)

    def outputs(
        self, network: Any, params: Any, batch: Any, *, teacher: Any, rngs: Any = None
    ) -> dict[str, Array]:
        maps = capture(network, params, batch["clips"])
        check_size(maps.attentions, network.config, self.measured)
        found: dict[str, list[Array]] = {}
        for attention in maps.attentions:
            for name, x in _means(attention.of_any_layer, network.config, self.measured).items():
                found.setdefault(f"{attention.of_layers}/{name}", []).append(x)
        return {key: jnp.stack(layers, axis=1) for key, layers in found.items()}


def _averaged(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes of queries, of a summary of each query."""
    return QUERY_AXES if set(QUERY_AXES) <= set(axes) else ()


@partial(jax.jit, static_argnums=(1, 2))
def _means(attention: Any, config: Any, want: tuple[str, ...]) -> dict[str, Array]:
    """Returns the summaries [B, head, ...], averaged over their queries."""
    made = {}
    for entry in (SUMMARIES[name] for name in want):
        for name, x in entry.make(attention, config, **entry.options).items():
            axes = entry.arrays[name]
            if jnp.issubdtype(x.dtype, jnp.integer):
                raise ValueError(f"{name!r} holds places of tokens, which have no mean")
            if averaged := _averaged(axes):
                x = jnp.moveaxis(x, [axes.index(axis) + 1 for axis in averaged], (2, 3))
                x = mean_over(attention, x, "ts")
            made[name] = x
    return made


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.statistics",
        __doc__,
        "python -m vivit.analysis.statistics runs/moving_digits",
        "python -m vivit.analysis.statistics runs/seed0 runs/seed1 runs/seed2 --out=stats.json",
    )
    _add_arguments(parser)
    arguments = parser.parse_args(argv)
    show_log()
    out = new_file(arguments.out)
    found = []
    for workdir in arguments.runs:
        run = Run(workdir, arguments.checkpoint, data_root=arguments.data_root)
        encoder = encoder_of_run(run)
        split = encoder.open(arguments.split)
        if arguments.clips is not None:
            if not 0 < arguments.clips <= len(split):
                raise ValueError(
                    f"--clips={arguments.clips}: the split has 1 to {len(split)} clips"
                )
            split = split.at(range(arguments.clips))
        found.append(statistics(encoder, split, split_names(arguments.want)))
    result = over_runs(found) if len(found) > 1 else found[0]
    print(result.table())
    if out is not None:
        write_json(out, result.as_json())
        print(f"-> {out}")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs_arguments(parser, "+", help="folders of runs: seeds of one model")
    parser.add_argument(
        "--want",
        default=",".join(USUAL),
        help=f"summaries, with commas (default: {', '.join(USUAL)}); there are: "
        f"{', '.join(sorted(SUMMARIES))}",
    )


if __name__ == "__main__":
    run_command(main)

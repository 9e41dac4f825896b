"""python -m vivit.analysis.faithfulness --workdir=RUN: do the methods find what the model uses?

Deletion: the regions that a method ranks highest are taken out first, and the probability of the
predicted class should fall soon. Insertion: they are put in first, and it should rise soon. Petsiuk
et al. (1806.07421), section 3, for regions in space and in time, against random order and a prior
of the middle. For data sets that say where the object is, as moving_digits, also how well a method
points at it.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from vivit.analysis.attribution import (
    REGIONS,
    Attributions,
    FloatClips,
    attribute,
    check_methods,
    pixels_of,
)
from vivit.analysis.compare import correlations
from vivit.analysis.localisation import coverage, localisation, ranks
from vivit.analysis.statistics import mean_with_interval
from vivit.axes import Clips
from vivit.cli import add_run_arguments, make_parser, new_file, run_command, show_log, split_names
from vivit.io import write_json
from vivit.model import ViViT
from vivit.model.embed import as_floats
from vivit.registry import Registry
from vivit.run import Run

USUAL = (
    "random", "uniform", "centre", "attention", "rollout", "gradient_attention", "relevance",
    "grad_cam",
)  # fmt: skip
log = logging.getLogger(__name__)
PARTS = 8  # of all regions, taken one after another
BATCH = 16  # clips

# Name -> (clips, taken out [B, F, H, W, 1]) -> clips with what stands for the pixels taken out.
FILLS: Registry[Callable[[FloatClips, Array], FloatClips]] = Registry("filling")
FILLS.add("mean", lambda clips, out: jnp.where(out, 0, clips))  # 0 is the mean colour


@FILLS.register("diffused")
def diffused(clips: FloatClips, out: Array, *, rounds: int = 32) -> FloatClips:
    """What is left, spread into the holes in space and time: each pixel there becomes the mean of
    its six neighbours, again and again. A plain form of ROAD's noisy linear imputation
    (2202.00449), section 4, so that the shape of a hole says little and no edge is new."""

    def spread(_: Any, x: FloatClips) -> FloatClips:
        total = jnp.zeros_like(x)
        for axis in (1, 2, 3):
            last = x.shape[axis] - 1
            ahead = jnp.take(x, jnp.minimum(jnp.arange(last + 1) + 1, last), axis=axis)
            behind = jnp.take(x, jnp.maximum(jnp.arange(last + 1) - 1, 0), axis=axis)
            total = total + ahead + behind
        return jnp.where(out, total / 6, clips)

    return jax.lax.fori_loop(0, rounds, spread, jnp.where(out, 0, clips))


@dataclass(frozen=True)
class Faithfulness:
    """What is measured of a method. deletion, insertion: [clip, part], the probability of each
    clip's class with none, one, ... all parts of its regions taken out, or put in. others: name ->
    a number of each clip."""

    deletion: Float[np.ndarray, "N parts"]
    insertion: Float[np.ndarray, "N parts"]
    others: Mapping[str, Float[np.ndarray, " N"]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Float[np.ndarray, " N"]]:
        """A number of each clip, from 0 to 1 those of the areas under the curves."""
        area = lambda curve: (curve[:, 1:] + curve[:, :-1]).mean(axis=1) / 2
        areas = {"deletion": area(self.deletion), "insertion": area(self.insertion)}
        return {**areas, **self.others}

    def as_lists(self) -> dict[str, Any]:
        """Returns the curves and others, as JSON has them."""
        arrays = {"deletion": self.deletion, "insertion": self.insertion, **self.others}
        return {name: array.tolist() for name, array in arrays.items()}


def faithfulness(
    model: ViViT,
    params: Any,
    clips: Clips,
    attributions: Attributions,
    classes: Int[np.ndarray, " B"],
    *,
    region: str = "tubes",
    fill: str = "diffused",
    parts: int = PARTS,
) -> Faithfulness:
    """Returns the curves of attributions to classes of clips.

    region: of REGIONS, which are ranked by the sum of their tokens' attributions. fill: of FILLS.
    parts: in how many equal steps all regions are taken. Raises ValueError for unknown names.
    """
    t, y, x = model.config.grid
    groups = REGIONS[region](t, y * x)
    _ = FILLS[fill]  # raises for an unknown name, outside of jit
    count = int(groups.max()) + 1
    flat = np.asarray(attributions, np.float64).reshape(len(clips), -1)
    rank = ranks(flat @ np.eye(count)[groups.ravel()])  # 0 is taken first
    rank = jnp.asarray(rank[:, groups])  # [B, T, S]
    curves = []
    for inserted in (False, True):
        taken = [round(count * part / parts) for part in range(parts + 1)]
        points = [
            _probability(model, fill, inserted, params, clips, rank, jnp.asarray(classes), number)
            for number in taken
        ]
        curves.append(np.stack(jax.device_get(points), axis=1))
    return Faithfulness(*curves)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _probability(
    model: ViViT,
    fill: str,
    inserted: bool,
    params: Any,
    clips: Clips,
    rank: Int[Array, "B T S"],
    classes: Int[Array, " B"],
    number: Any,
) -> Float[Array, " B"]:
    """Returns the probabilities of classes where the first regions by rank are out, or alone in."""
    out = rank >= number if inserted else rank < number
    clips = as_floats(clips, model.config).astype(jnp.float32)
    filled = FILLS[fill](clips, pixels_of(out, model.config))
    probabilities = jax.nn.softmax(model.apply({"params": params}, filled))  # pyright: ignore
    return jnp.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0]


def measure_run(
    run: Run,
    methods: Sequence[str],
    *,
    clips: int,
    region: str,
    fill: str,
    random_seed: int | None = None,
) -> dict[str, Faithfulness]:
    """Returns method -> what is measured of it on the first clips of a run's split, for the
    predicted classes.

    Data sets that say where the object is add `localisation`, and a line "track" of the object's
    own place as a method. random_seed: of random parameters that the attributions are of, in place
    of the run's; the head and the curves are still the run's, and "agreement" is the rank
    correlation with the run's attributions. A method that does no worse then finds what any model
    would: the sanity check of Adebayo et al. (1810.03292), section 3.

    Raises ValueError for unknown names, and for a run whose classes are not alternatives.
    """
    if run.objective.several or len(run.objective.heads) != 1:
        raise ValueError("this is for runs of one head, with one label of each clip")
    check_methods(methods)
    if not 1 <= clips <= len(run.data):
        raise ValueError(f"{clips=} of a split of {len(run.data)} clips")
    if run.data.masks is None:
        name = f"{run.data.name} {run.data.version}"
        log.info("%s does not say where the object is: no pointing game and IoU", name)
    params, parts = run.params_on_device, defaultdict(list)
    explained = params
    if random_seed is not None:
        explained = run.random_params(random_seed)
    for start in tqdm(range(0, clips, BATCH), desc="faithfulness", unit="batch", leave=False):
        # The last batch is filled up, so that nothing is compiled for it alone.
        numbers = [min(i, clips - 1) for i in range(start, start + BATCH)]
        batch, _ = run.clips(numbers)
        classes = run.predict(batch).argmax(axis=1)
        found = _attributions(run, explained, batch, classes, methods)
        masks = run.masks(numbers)
        if masks is not None:
            found["track"] = coverage(masks, run.model.config)
        trained = found
        if explained is not params:
            trained = {**found, **_attributions(run, params, batch, classes, methods)}
        for name, x in found.items():
            options: Any = {"region": region, "fill": fill}
            curves = faithfulness(run.model, params, batch, jnp.asarray(x), classes, **options)
            others = {} if masks is None else localisation(x, masks, run.model.config)
            if explained is not params:
                others["agreement"] = agreement(x, trained[name])
            parts[name].append(replace(curves, others=others))
    return {name: _join(found, clips) for name, found in parts.items()}


def agreement(
    x: Float[np.ndarray, "B T S"], y: Float[np.ndarray, "B T S"]
) -> Float[np.ndarray, " B"]:
    """Returns Spearman's rank correlation of two attributions of each clip, 1 for equal ones."""
    from scipy.stats import rankdata  # slow to import

    rank = lambda z: rankdata(z.reshape(len(z), -1), axis=1).reshape(z.shape)
    return np.where((x == y).all(axis=(1, 2)), 1.0, correlations(rank(x), rank(y)))


def _attributions(
    run: Run, params: Any, clips: Clips, classes: np.ndarray, methods: Sequence[str]
) -> dict[str, np.ndarray]:
    return {k: np.asarray(attribute(k, run.model, params, clips, classes)) for k in methods}


def _join(parts: Sequence[Faithfulness], clips: int) -> Faithfulness:
    join = lambda arrays: np.concatenate(list(arrays))[:clips]
    return Faithfulness(
        join(part.deletion for part in parts),
        join(part.insertion for part in parts),
        {name: join(part.others[name] for part in parts) for name in parts[0].others},
    )


def table(found: dict[str, Faithfulness]) -> str:
    """Returns a Markdown table of the areas under the curves, with 95 % intervals over clips."""
    first = next(iter(found.values())).scores
    lines = [
        f"{len(first['deletion'])} clips; areas under the curves of the predicted class's "
        "probability. Of deletion less is better, of the others more.",
        "",
        f"| method | {' | '.join(first)} |",
        "| --- " * (1 + len(first)) + "|",
    ]
    for name, measured in found.items():
        cells = [
            mean_with_interval(x)
            for x in (score[~np.isnan(score)] for score in measured.scores.values())
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.faithfulness",
        __doc__,
        "python -m vivit.analysis.faithfulness --workdir=runs/moving_digits",
        "python -m vivit.analysis.faithfulness --workdir=runs/k400 --region=steps --clips=64",
    )
    add_run_arguments(parser)
    usual = ",".join(USUAL)
    parser.add_argument("--methods", default=usual, help=f"with commas ({usual})")
    parser.add_argument("--region", choices=sorted(REGIONS), default="tubes", help="(tubes)")
    parser.add_argument("--fill", choices=sorted(FILLS), default="diffused", help="(diffused)")
    parser.add_argument("--clips", type=int, default=200, metavar="N", help="the first N (200)")
    parser.add_argument(
        "--random-seed",
        type=int,
        metavar="N",
        help="attributions of random parameters, which should be no better than random ones",
    )
    parser.add_argument("--out", metavar="FILE", help="where all of each clip is written as JSON")
    arguments = parser.parse_args(argv)
    show_log()
    out = new_file(arguments.out)
    run = Run(arguments.workdir, arguments.checkpoint, arguments.split, arguments.data_root)
    methods = split_names(arguments.methods)
    options: Any = {"region": arguments.region, "fill": arguments.fill, "clips": arguments.clips}
    options["random_seed"] = arguments.random_seed
    found = measure_run(run, methods, **options)
    print(table(found))
    if out is not None:
        write_json(out, {name: x.as_lists() for name, x in found.items()})
        print(f"-> {out}")


if __name__ == "__main__":
    run_command(main)

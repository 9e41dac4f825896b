"""python -m vivit.analysis.ablation --workdir=RUN: accuracy without a head, an attention, or the
order of the frames.

A head is switched off by zeros in its rows of the attention's output, an attention by zeros in all
of it, its bias too. Nothing is trained again: it says what the model as it is makes use of.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from vivit.analysis.statistics import half_interval, with_interval
from vivit.cli import add_run_arguments, make_parser, new_file, run_command, show_log
from vivit.evaluate import compare, score_params, score_run
from vivit.io import write_json
from vivit.model import ViViT
from vivit.registry import Registry
from vivit.results import ClipScores
from vivit.run import Run


@dataclass(frozen=True)
class Part:
    """A part of a model's attention. pattern: its label. head: None for all of them."""

    stage: int
    layer: int
    pattern: str
    head: int | None = None

    @property
    def name(self) -> str:
        head = "all heads" if self.head is None else f"head {self.head}"
        return f"stage {self.stage}, layer {self.layer}, {self.pattern}, {head}"


# Name -> clips [B, F, H, W, 3] -> clips whose frames are in another order, or all the same one.
FRAMES: Registry[Callable[[Array], Array]] = Registry("change of frames")
FRAMES.add("reversed", lambda clips: jnp.flip(clips, axis=1))
FRAMES.add("frozen", lambda clips: jnp.repeat(_middle(clips), clips.shape[1], axis=1))
FRAMES.add("shuffled", lambda clips: clips[:, np.random.default_rng(0).permutation(clips.shape[1])])


def _middle(clips: Array) -> Array:
    at = clips.shape[1] // 2
    return clips[:, at : at + 1]


@dataclass(frozen=True)
class Ablation:
    """What happens without a part, or with other frames.

    name: of what is missing or changed. accuracy: the share of the clips that are right by every
    head of the task. fall, half_interval: of the accuracy, and half the length of its 95 % interval
    over the clips. lost, won: clips that are right only before, or only after the change. p: of
    McNemar's exact test that both are equally good.
    """

    name: str
    accuracy: float
    fall: float
    half_interval: float
    lost: int
    won: int
    p: float


def parts_of(model: ViViT, *, heads: bool = True) -> list[Part]:
    """Returns the attentions of a model, each followed by its heads if these are wanted."""
    parts = []
    for i, stage in enumerate(model.config.stages):
        for layer in range(stage.depth):
            for pattern in stage.attentions:
                of = i, layer, pattern.label
                parts.append(Part(*of))
                parts += [Part(*of, head) for head in range(stage.heads if heads else 0)]
    return parts


def without(model: ViViT, params: Any, part: Part) -> Any:
    """Returns a model's parameters with a part switched off; others are shared with `params`.

    Raises ValueError for a part that the model does not have.
    """
    known = parts_of(model)
    if part not in known:
        raise ValueError(f"no {part} in the model; the last of its parts is {known[-1]}")
    stage = model.config.stages[part.stage]
    pattern = next(p for p in stage.attentions if p.label == part.pattern)
    at_layer = "layers" if model.config.scan else f"layer_{part.layer}"
    name = f"attention_{stage.block.attention_name(pattern)}"
    at = f"stage_{part.stage}", at_layer, name
    of_attention = params[at[0]][at_layer][name]
    which: Any = (part.layer,) if model.config.scan else ()
    if part.head is None:  # what comes last adds nothing
        at = (*at, "projection" if "projection" in of_attention else "out")
    else:
        at, which = (*at, "out", "kernel"), (*which, part.head)

    def switched(path: Any, x: Any) -> Any:
        if tuple(entry.key for entry in path[: len(at)]) != at:
            return x
        changed = np.array(x)
        changed[which] = 0
        return changed

    return jax.tree_util.tree_map_with_path(switched, params)


def ablate(run: Run, parts: list[Part] | None = None) -> tuple[float, list[Ablation]]:
    """Returns a run's accuracy on its split, and what happens without each part; None for all.

    Raises ValueError for a run that predicts no labels.
    """
    parts = parts_of(run.model) if parts is None else parts
    params = jax.tree.map(np.asarray, run.params)

    def variants() -> Iterator[Any]:
        yield params
        for part in tqdm(parts, desc="ablation", unit="part", leave=False):
            yield without(run.model, params, part)

    whole, *others = [scores.clips for scores in score_params(run, variants())]
    pairs = zip(parts, others, strict=True)
    return float(whole.right.mean()), [_against(whole, x, part.name) for part, x in pairs]


def change_frames(run: Run) -> tuple[float, list[Ablation]]:
    """Returns a run's accuracy on its split, and what happens with each of FRAMES."""
    whole = score_run(run).clips
    found = []
    for name in tqdm(list(FRAMES), desc="frames", leave=False):
        (scores,) = score_params(run, [run.params], change=FRAMES[name])
        found.append(_against(whole, scores.clips, f"frames {name}"))
    return float(whole.right.mean()), found


def _against(whole: ClipScores, other: ClipScores, name: str) -> Ablation:
    falls = whole.right.astype(float) - other.right
    if len(falls) < 2:
        raise ValueError("accuracies of a single clip are not compared; take a split of more")
    lost, won, p = compare(whole, other)
    half = float(half_interval(falls))
    return Ablation(name, float(other.right.mean()), float(falls.mean()), half, lost, won, p)


def table(accuracy: float, found: list[Ablation]) -> str:
    """Returns a Markdown table, from the largest fall."""
    lines = [
        f"All of it: {100 * accuracy:.2f} %",
        "",
        "| without | accuracy | fall | lost | won | p |",
        "| --- " * 6 + "|",
    ]
    for x in sorted(found, key=lambda x: -x.fall):
        p = f"{x.p:.2g}" if x.p > 1e-300 else "< 1e-300"
        fall = with_interval(f"{100 * x.fall:.2f}", 100 * x.half_interval, ".2f")
        lines.append(f"| {x.name} | {100 * x.accuracy:.2f} % | {fall} | {x.lost} | {x.won} | {p} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.ablation",
        __doc__,
        "python -m vivit.analysis.ablation --workdir=runs/moving_digits",
        "python -m vivit.analysis.ablation --workdir=runs/k400 --of=attentions --out=ablation.json",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--of",
        choices=("heads", "attentions", "frames"),
        default="heads",
        help="attentions and each of their heads (default), attentions alone, or frames: reversed, "
        "shuffled, or all the middle one",
    )
    parser.add_argument("--out", metavar="FILE", help="where all of it is written as JSON")
    arguments = parser.parse_args(argv)
    show_log()
    out = new_file(arguments.out)
    run = Run(arguments.workdir, arguments.checkpoint, arguments.split, arguments.data_root)
    if arguments.of == "frames":
        accuracy, found = change_frames(run)
    else:
        accuracy, found = ablate(run, parts_of(run.model, heads=arguments.of == "heads"))
    print(table(accuracy, found))
    if out is not None:
        write_json(out, {"accuracy": accuracy, "without": list(map(asdict, found))})
        print(f"-> {out}")


if __name__ == "__main__":
    run_command(main)

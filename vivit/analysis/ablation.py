"""python -m vivit.analysis.ablation --workdir=RUN: accuracy without a head, or an attention, at a
time.

A head is switched off by zeros in its rows of the attention's output, an attention by zeros in all
of it, its bias too. Nothing is trained again: it says what the model as it is makes use of.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from vivit.analysis.statistics import half_interval
from vivit.cli import add_run_arguments, make_parser, run_command, show_log
from vivit.evaluate import compare, score_params
from vivit.io import write_json
from vivit.model import ViViT
from vivit.run import Run


@dataclass(frozen=True)
class Part:
    """A part of a model's attention. pattern: its label. head: None for all of them."""

    stage: int
    layer: int
    pattern: str
    head: int | None = None


@dataclass(frozen=True)
class Ablation:
    """What happens without a part. accuracy: the part of the clips that are right by every head of
    the task. fall: of the accuracy, and half the length of its 95 % interval over the clips, of
    the mean of the differences. lost, won: clips that are right only with the part, or only
    without it; p: McNemar's exact test that both are equally good."""

    part: Part
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
    found = []
    for part, clips in zip(parts, others, strict=True):
        falls = whole.right.astype(float) - clips.right
        half = float(half_interval(falls))
        lost, won, p = compare(whole, clips)
        accuracy = float(clips.right.mean())
        found.append(Ablation(part, accuracy, float(falls.mean()), half, lost, won, p))
    return float(whole.right.mean()), found


def table(accuracy: float, found: list[Ablation]) -> str:
    """Returns a Markdown table, from the largest fall."""
    lines = [
        f"All of it: {100 * accuracy:.2f} %",
        "",
        "| stage | layer | attention | head | accuracy | fall | lost | won | p |",
        "| --- " * 9 + "|",
    ]
    for x in sorted(found, key=lambda x: -x.fall):
        head = "all" if x.part.head is None else x.part.head
        lines.append(
            f"| {x.part.stage} | {x.part.layer} | {x.part.pattern} | {head} | "
            f"{100 * x.accuracy:.2f} % | {100 * x.fall:.2f} ± {100 * x.half_interval:.2f} | "
            f"{x.lost} | {x.won} | {f'{x.p:.2g}' if x.p > 1e-300 else '< 1e-300'} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.ablation",
        __doc__,
        "python -m vivit.analysis.ablation --workdir=runs/moving_digits",
        "python -m vivit.analysis.ablation --workdir=runs/k400 --attentions --out=ablation.json",
    )
    add_run_arguments(parser)
    parser.add_argument("--attentions", action="store_true", help="whole attentions, not each head")
    parser.add_argument("--out", metavar="FILE", help="where all of it is written as JSON")
    arguments = parser.parse_args(argv)
    show_log()
    if arguments.out is not None and Path(arguments.out).exists():
        raise ValueError(f"{arguments.out} exists; name a new file")
    run = Run(arguments.workdir, arguments.checkpoint, arguments.split, arguments.data_root)
    accuracy, found = ablate(run, parts_of(run.model, heads=not arguments.attentions))
    print(table(accuracy, found))
    if arguments.out is not None:
        write_json(Path(arguments.out), {"accuracy": accuracy, "without": list(map(asdict, found))})
        print(f"-> {arguments.out}")


if __name__ == "__main__":
    run_command(main)

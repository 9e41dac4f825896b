"""python -m benchmarks.devices: models compiled for accelerators that are not present, in tables.

For each family, size, kernel and target the largest batch that fits, bytes per chip, and bounds of
a training step; then clips that need several chips. A case that OUT/devices.json has is not
compiled again.
"""

import sys
from collections.abc import Iterable
from itertools import product
from typing import Any

from benchmarks.suites import add_table_arguments, machine_info
from configs import common
from vivit.cli import make_parser, run_command
from vivit.compile import compile_for, largest_steps, make_steps
from vivit.config import as_config
from vivit.describe import units
from vivit.io import read_json, write_atomically, write_json
from vivit.targets import make_target, only_compile

FAMILIES = (
    "joint",
    "factorised_encoder",
    "factorised_self_attention",
    "factorised_dot_product",
)
TARGETS = ("h100:8", "v5e:16x16", "v5p:4x4x4")
BASE = {
    "clip": (32, 224, 224),
    "classes": 400,
    "readout": "mean",
    "dtype": "bfloat16",
    "scan": True,
}
LONG = {"128x224x224": (128, 224, 224), "32x448x448": (32, 448, 448)}


def largest(target: str, family: str, size: str, kernel: str) -> dict[str, Any]:
    """Returns what vivit.compile finds at the largest batch that fits."""
    config = config_of(family=family, size=size, kernel=kernel)
    steps = largest_steps(config, make_target(target))
    return compile_for(steps) if steps else {"batch": 0}


def long_clip(target: str, clip: str, kernel: str, sequence: int) -> dict[str, Any]:
    model = {"family": "joint", "size": "B/16x2", "kernel": kernel, "clip": LONG[clip]}
    config = config_of(sequence=sequence, **model)
    return compile_for(make_steps(config, make_target(target), batch_size=1))


def config_of(*, sequence: int = 1, **model: Any) -> Any:
    config = common.get_config()
    config.model.update({**BASE, **model})
    config.parallel.update(sequence=sequence)
    return as_config(config)


MODELS = {
    " | ".join(case): case
    for case in product(TARGETS, FAMILIES, ("B/16x2", "L/16x2"), ("chunked", "fused"))
}
CLIPS = {
    " | ".join(map(str, case)): case
    for clip in LONG
    for case in (("v5e:1x1", clip, "dense", 1), ("v5e:2x2", clip, "ring", 4))
}


def row_of(name: str, found: dict[str, Any]) -> str:
    chips, train = found.get("devices", 0), found.get("train", {})
    if "peak_bytes" not in train:
        reason = train.get("error", "one clip per device does not fit")
        return f"| {name} | {found['batch']} | | {reason} | | | | |"
    bounds = found["bounds"]
    milliseconds = [
        f"{1e3 * bounds[key]:,.0f}"
        for key in ("compute_seconds", "memory_seconds", "interconnect_seconds")
    ]
    fits = "" if train["fits"] else " (does not fit)"
    cells = [
        name,
        f"{found['batch']:,}",
        f"{found['batch'] / chips:g}",
        f"{units(train['parameters_bytes'] + train['optimiser_bytes'])}B",
        f"{units(train['peak_bytes'])}B{fits}",
        " / ".join(milliseconds),
        f"{found['batch'] / bounds['step_seconds']:,.0f}",
        f"{bounds['mfu']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "batch", "per chip", "state per chip", "peak per chip", "ms: compute / memory / links",
    "clips/s at most", "MFU at most",
)  # fmt: skip


def table(heads: tuple[str, ...], names: Iterable[str], results: dict[str, Any]) -> str:
    lines = [
        f"| {' | '.join((*heads, *HEAD))} |",
        "|---" * len(heads) + "|---:" * len(HEAD) + "|",
        *(row_of(name, results[name]) for name in names if name in results),
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "benchmarks.devices",
        __doc__,
        "python -m benchmarks.devices",
        "python -m benchmarks.devices --only h100",
    )
    add_table_arguments(parser)
    arguments = parser.parse_args(argv)
    only_compile()
    path = arguments.out / "devices.json"
    results = read_json(path) if path.exists() else {}
    for cases, run in ((MODELS, largest), (CLIPS, long_clip)):
        for name, case in cases.items():
            if arguments.only in name and name not in results:
                results[name] = run(*case)
                write_json(path, results)
                print(row_of(name, results[name]), file=sys.stderr, flush=True)
    info = machine_info()
    parts = (
        "`python -m benchmarks.devices`: compiled without the devices, "
        f"{info['date']}, JAX {info['jax']}, Python {info['python']}.",
        table(("target", "family", "size", "kernel"), MODELS, results),
        table(("target", "joint B/16x2, clip", "kernel", "sequence"), CLIPS, results),
    )
    write_atomically(path.with_suffix(".md"), "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    run_command(main)

"""python -m benchmarks.suites SUITE: time, memory and multiply-adds of attention and of models.

Every case runs in a process of its own, so that none can spoil the next: it is compiled, run once
to warm up, then timed. With --target it is compiled for a device that is not present and not run.
Writes OUT/SUITE.json, with all that was measured, and OUT/SUITE.md.
"""

import argparse
import datetime
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import vivit
from benchmarks import data_suite
from vivit import pretrained
from vivit.attention import KERNELS, PATTERNS
from vivit.chips import chip_of
from vivit.cli import make_parser, run_command
from vivit.compile import COMPILER_OPTIONS
from vivit.cost import abstract_params, count_multiply_adds, count_products
from vivit.describe import train_step
from vivit.io import write_atomically
from vivit.parallel import make_parallel
from vivit.pretrained.writers import WRITERS
from vivit.registry import Registry
from vivit.settings import ParallelSettings
from vivit.targets import make_target, only_compile, quiet

Case = dict[str, Any]
SUITES: Registry[Callable[[], Iterable[Case]]] = Registry("suite")

# The grids of a 32 x 224 x 224 clip, and of longer and larger ones: N = 3136, 12,544 and 50,176.
GRIDS = ((16, 14, 14), (64, 14, 14), (64, 28, 28))
BASE = {"size": "B/16x2", "clip": (32, 224, 224), "classes": 400, "readout": "mean"}


def attention_case(pattern: str, kernel: str, grid: tuple[int, int, int], **fields: Any) -> Case:
    return {
        "kind": "attention",
        "pattern": pattern,
        "kernel": kernel,
        "grid": grid,
        "heads": 12,
        "channels": 64,
        "dtype": "float32",
        **fields,
    }


def model_case(mode: str, batch: int = 1, **fields: Any) -> Case:
    """mode: "forward" or "train"."""
    return {"kind": "model", "mode": mode, "batch": batch, "model": {**BASE, **fields}}


@SUITES.register("patterns")
def every_pattern() -> Iterator[Case]:
    """Yields every pattern on the grid of a 32 x 224 x 224 clip, dense and chunked."""
    for name in PATTERNS:
        for kernel in ("dense", "chunked"):
            yield attention_case(name, kernel, GRIDS[0])


@SUITES.register("lengths")
def joint_lengths() -> Iterator[Case]:
    """Yields joint attention over 3,136, 12,544 and 50,176 tokens. The longest is only compiled: it
    takes minutes on a CPU. So is what needs more memory than the machine has."""
    for grid in GRIDS:
        for kernel in ("dense", "chunked"):
            case = attention_case("joint", kernel, grid)
            yield case if grid != GRIDS[-1] else {**case, "run": False}


@SUITES.register("short")
def short_sets() -> Iterator[Case]:
    """Yields about 3,136 tokens in sets of 8 to 512, between which "auto" goes from dense to
    chunked."""
    for rows, columns in ((2, 4), (4, 4), (4, 8), (7, 7), (7, 14), (14, 14), (14, 28), (16, 32)):
        for kernel in ("dense", "chunked"):
            grid = (3136 // (rows * columns), rows, columns)
            yield attention_case("space", kernel, grid)


@SUITES.register("models")
def cpu_models() -> Iterator[Case]:
    """Yields joint and factorised encoder B/16x2, one 32 x 224 x 224 clip, float32."""
    for kernel in ("dense", "chunked"):
        for mode in ("forward", "train"):
            yield model_case(mode, family="factorised_encoder", kernel=kernel)
            if (kernel, mode) != ("dense", "train"):
                yield model_case(mode, family="joint", kernel=kernel)
    yield model_case("train", family="joint", kernel="chunked", remat="full")
    yield model_case("train", family="joint", kernel="chunked", remat="full", scan=True)


@SUITES.register("compile")
def scanned_depths() -> Iterator[Case]:
    """Yields the trace and compile time of a scanned model of 4 and of 24 layers."""
    for depth in (4, 24):
        case = model_case("train", family="joint", kernel="chunked", depth=depth, scan=True)
        yield {**case, "run": False}


@SUITES.register("accelerator")
def bfloat16_models() -> Iterator[Case]:
    """Yields training steps in bfloat16 at growing batches, with the platform's kernel; one GPU."""
    for family, size in (("joint", "B/16x2"), ("factorised_encoder", "B/16x2")):
        for batch in (8, 16, 32):
            yield _fused(family, size, batch)
    for batch in (4, 8, 16):
        yield _fused("factorised_encoder", "L/16x2", batch)
    yield _fused("joint", "B/16x2", 16, kernel="chunked")
    # 12,544 tokens: the paper ran out of memory beyond 48 frames.
    yield _fused("joint", "L/16x2", 1, clip=(128, 224, 224))


@SUITES.register("kernels")
def kernels_by_length() -> Iterator[Case]:
    """Yields patterns in bfloat16 by every kernel of one device, at three lengths."""
    for pattern in ("joint", "space", "time", "split_heads"):
        for kernel in ("dense", "chunked", "fused"):
            for grid in GRIDS:
                yield attention_case(pattern, kernel, grid, dtype="bfloat16")


@SUITES.register("weights")
def weights_in_and_out() -> Iterator[Case]:
    """Yields loading and writing a B/16x2 joint model, for each format that has an export."""
    for form in WRITERS:
        yield {"kind": "weights", "form": form}


SUITES.add("data", data_suite.cases)
SUITES.add("runs", data_suite.runs)


def _fused(family: str, size: str, batch: int, **fields: Any) -> Case:
    fields = {"kernel": "fused", "dtype": "bfloat16", **fields}
    return model_case("train", batch, family=family, size=size, **fields)


# --- in the process of one case ---


def measure(case: Case, *, repeats: int, target: str = "") -> dict[str, Any]:
    """Returns what one case takes; times are medians over `repeats` runs after a warm-up.

    target: of `vivit.targets.make_target`, one device that is compiled for; "" for the first one of
    this machine, on which the case runs.
    """
    if case["kind"] in WHOLE:
        if target:
            raise ValueError(f"cases of {case['kind']!r} run; they are not compiled for a --target")
        return WHOLE[case["kind"]](case, repeats=repeats)
    devices = make_target(target).devices if target else jax.devices()[:1]
    parallel = make_parallel(ParallelSettings(), devices)
    with parallel.ambient():  # kernels are those of its platform
        function, arguments, work = KINDS[case["kind"]](case)
    everywhere = NamedSharding(parallel.mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), arguments
    )
    started = time.perf_counter()
    step = jax.jit(parallel.within(function), donate_argnums=work.get("donated", ()))
    lowered = step.lower(*arguments)
    traced = time.perf_counter()
    if target:
        with quiet():
            compiled = lowered.compile(COMPILER_OPTIONS.get(devices[0].platform))
    else:
        compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    result = {
        "trace_seconds": traced - started,
        "compile_seconds": done - traced,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "multiply_adds": work["multiply_adds"],
    }
    if target or case.get("run") is False:
        return result
    need, available = memory.temp_size_in_bytes + 2 * memory.argument_size_in_bytes, _memory()
    if need > 0.8 * available:
        reason = f"needs {need / 1e9:.1f} GB of this machine's {available / 1e9:.1f} GB"
        return {**result, "not_run": reason}
    wall, cpu = _time(compiled, arguments, work, repeats=repeats)
    operations = 2 * work["passes"] * work["multiply_adds"]
    median = statistics.median(wall)
    chip = chip_of(jax.devices()[0].device_kind)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        **result,
        "seconds": median,
        "seconds_of_runs": wall,
        "cpu_seconds": statistics.median(cpu),
        "gflops": operations / median / 1e9,
        "mfu": operations / median / chip.flops["bfloat16"] if chip else None,
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
    }


def _time(compiled, shapes, work, *, repeats: int) -> tuple[list[float], list[float]]:
    arguments, wall, cpu = work["make"](shapes), [], []
    for run in range(repeats + 1):
        began, spent = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(compiled(*arguments))
        if run:
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - spent)
        if work.get("donated"):
            arguments = (out[0], *arguments[1:])
    return wall, cpu


def _memory() -> int:
    """Bytes of the device's memory, or of the machine's where the device is its CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_weights(case: Case, *, repeats: int) -> dict[str, Any]:
    """Seconds of writing and of loading a B/16x2 joint model, and by how many times its size the
    process grew at most while it loaded."""
    form, config = case["form"], {**BASE, "family": "joint", "readout": "cls"}
    with tempfile.TemporaryDirectory() as folder:
        # By another process, so that what it needs is not counted.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as other:
            written = other.submit(_write_weights, Path(folder, "model"), config, form).result()
        size = Path(folder, "model/model.safetensors").stat().st_size
        before, began, spent = _resident(), time.perf_counter(), time.process_time()
        loaded = pretrained.load(Path(folder, "model"))
        jax.block_until_ready(loaded.params)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "file_bytes": size,
        "write_seconds": written,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_times_file": peak / size,
    }


def _write_weights(folder: Path, config: dict[str, Any], form: str) -> float:
    params = _random(abstract_params(vivit.build(config)))
    began = time.perf_counter()
    pretrained.export(folder, config, params, to=form)
    return time.perf_counter() - began


def _resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _attention(case: Case) -> tuple[Callable, tuple, dict]:
    """Forward and backward of one attention: gradients by queries, keys, values and parameters."""
    pattern, (t, y, x) = PATTERNS[case["pattern"]], case["grid"]
    heads, channels = case["heads"], case["channels"]
    pattern.check(t, y, x, **pattern.options)
    grid = jax.ShapeDtypeStruct((1, t, y * x, heads, channels), jnp.dtype(case["dtype"]))
    parameters = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, (shape, _) in pattern.parameters(heads, channels, **pattern.options).items()
    }

    def forward(q, k, v, parameters, kernel=KERNELS["dense"]):
        return pattern(q, k, v, kernel, space=(y, x), layer=1, **parameters)

    def loss(*arguments):
        out = forward(*arguments, kernel=KERNELS[case["kernel"]])
        return (out.astype(jnp.float32) ** 2).sum()

    products = count_products(forward, grid, grid, grid, parameters)
    work = {"multiply_adds": products, "passes": 3, "make": _random}
    return jax.grad(loss, argnums=(0, 1, 2, 3)), (grid, grid, grid, parameters), work


def _random(shapes: Any) -> Any:
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype)
    return jax.tree.map(draw, shapes)


def _model(case: Case) -> tuple[Callable, tuple, dict]:
    """A forward pass, or a training step with AdamW, of a batch of clips."""
    model = vivit.build(case["model"])
    init, step, batch = train_step(model, batch=case["batch"])
    state = jax.eval_shape(init, 0)
    real = lambda: jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), batch)
    made = lambda: jax.jit(init, static_argnums=0)(0)
    work = {"multiply_adds": case["batch"] * count_multiply_adds(model)}
    if case["mode"] == "train":
        work |= {"passes": 3, "donated": (0,), "make": lambda _: (made(), real())}
        return step, (state, batch), work
    forward = lambda params, clips: model.apply({"params": params}, clips)
    work |= {"passes": 1, "make": lambda _: (made().params, real()["clips"])}
    return forward, (state.params, batch["clips"]), work


KINDS = {"attention": _attention, "model": _model}  # one compiled function each
WHOLE = {"weights": measure_weights, "data": data_suite.measure, "run": data_suite.measure_run}


# --- in the process of all cases ---


def run_case(
    case: Case, *, repeats: int, target: str = "", timeout: float = 1800
) -> dict[str, Any]:
    """Returns a case's record, measured in a process of its own; with "error" if it failed."""
    command = [sys.executable, "-m", "benchmarks.suites", "--case", json.dumps(case)]
    command += ["--repeats", str(repeats), "--target", target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"case": case, "error": f"took over {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"case": case, "error": f"exit {done.returncode}: {last[:300]}"}
    return {"case": case, **json.loads(lines[-1])}


def machine_info() -> dict[str, str]:
    """Returns the machine that numbers were measured on."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpus": str(os.cpu_count()),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


COLUMNS: dict[str, Callable[[dict], str]] = {
    "time": lambda r: f"{r['seconds']:.3g} s" if "seconds" in r else "",
    "CPU time": lambda r: f"{r['cpu_seconds']:.3g} s" if "cpu_seconds" in r else "",
    "temporaries": lambda r: _megabytes(r.get("temporary_bytes")),
    "device peak": lambda r: _megabytes(r.get("peak_device_bytes")),
    "multiply-adds": lambda r: f"{r['multiply_adds'] / 1e9:,.1f} G" if "multiply_adds" in r else "",
    "GFLOP/s": lambda r: f"{r['gflops']:,.0f}" if "gflops" in r else "",
    "MFU": lambda r: f"{r['mfu']:.1%}" if r.get("mfu") else "",
    "trace + compile": lambda r: (
        f"{r['trace_seconds'] + r['compile_seconds']:.1f} s" if "trace_seconds" in r else ""
    ),
    "file": lambda r: _megabytes(r.get("file_bytes")),
    "written in": lambda r: f"{r['write_seconds']:.1f} s" if "write_seconds" in r else "",
    "peak memory / file": lambda r: f"{r['peak_times_file']:.2f}" if "peak_times_file" in r else "",
    **data_suite.COLUMNS,
    "": lambda r: r.get("error") or r.get("not_run") or "",
}


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def name_of(case: Case) -> str:
    if case["kind"] == "weights":
        return f"load {case['form']}, joint, B/16x2"
    if case["kind"] in ("data", "run"):
        return data_suite.name_of(case)
    if case["kind"] == "attention":
        where = f"N={math.prod(case['grid']):,}"
        if case["pattern"] != "joint":
            where = "x".join(map(str, case["grid"]))
        return f"{case['pattern']}, {case['kernel']}, {where}, {case['dtype']}"
    fields = {k: v for k, v in case["model"].items() if v != BASE.get(k)}
    size = fields.pop("size", BASE["size"])
    clip = "x".join(map(str, fields.pop("clip", BASE["clip"])))
    words = [str(fields.pop("family")), size, clip, case["mode"], f"batch {case['batch']}"]
    return ", ".join(words + [v if isinstance(v, str) else f"{k}={v}" for k, v in fields.items()])


def table(records: list[dict], *, machine: dict[str, str], command: str) -> str:
    """Returns a Markdown table without columns that would be empty."""
    rows = [[name_of(r["case"]), *(column(r) for column in COLUMNS.values())] for r in records]
    heads = ["case", *COLUMNS]
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] for row in rows)]
    lines = [[heads[i] for i in kept], ["---"] + ["---:"] * (len(kept) - 1)]
    lines += [[row[i] for i in kept] for row in rows]
    description = ", ".join(f"{key} {value}" for key, value in machine.items())
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"`{command}`: {description}.\n\n{body}\n"


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --only and --out: which cases are measured, and where their tables go."""
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="cases whose name has this in it"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("benchmark"),
        help="where the tables go (default: benchmark)",
    )


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "benchmarks.suites",
        __doc__,
        "python -m benchmarks.suites data --repeats 3",
        "python -m benchmarks.suites kernels --only chunked --target h100:1",
    )
    parser.add_argument("suite", nargs="?", help=f"{', '.join(SUITES)}")
    add_table_arguments(parser)
    parser.add_argument(
        "--repeats", type=int, metavar="N", default=5, help="timed runs of a case (default: 5)"
    )
    parser.add_argument(
        "--case", metavar="JSON", help="one case, which is measured in this process"
    )
    parser.add_argument(
        "--target", default="", help="one device to compile for instead of running: h100:1"
    )
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    options = {"repeats": arguments.repeats, "target": arguments.target}
    if arguments.target:
        only_compile()
        if len(make_target(arguments.target).devices) > 1:  # once, not in every case
            parser.error(f"--target={arguments.target} is several devices; cases are for one")
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case), **options)))
        return
    if not arguments.suite:
        parser.error(f"name a suite: {', '.join(SUITES)}")
    cases = [c for c in SUITES[arguments.suite]() if arguments.only in name_of(c)]
    if not cases:
        raise ValueError(f"no case of {arguments.suite} has {arguments.only!r} in its name")
    machine, records = machine_info(), []
    command = f"python -m benchmarks.suites {arguments.suite} --repeats {arguments.repeats}"
    name = arguments.suite
    if arguments.target:
        command = f"python -m benchmarks.suites {arguments.suite} --target {arguments.target}"
        name = f"{arguments.suite}_{arguments.target.partition(':')[0]}"
    run = partial(run_case, **options)
    for case in cases:
        records.append(run(case))
        print(table(records[-1:], machine=machine, command=command).splitlines()[-1], flush=True)
        # Written after each case: a suite that is stopped keeps what it has.
        everything = {"machine": machine, "command": command, "records": records}
        path = arguments.out / name
        write_atomically(path.with_suffix(".json"), json.dumps(everything, indent=1) + "\n")
        text = table(records, machine=machine, command=command)
        write_atomically(path.with_suffix(".md"), text)
    print(f"{path.with_suffix('.md')} and .json")


if __name__ == "__main__":
    run_command(main)

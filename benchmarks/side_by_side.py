"""Training steps of this project and of others, side by side in one run.

    python benchmarks/side_by_side.py joint
    python benchmarks/side_by_side.py factorised_encoder

One 32 x 224 x 224 clip, B/16x2, float32 on a CPU, or bfloat16 with --dtype bfloat16 on a GPU. Every
implementation lives in a process of its own; rounds go through all of them in turn, forward pass
and training step with AdamW, so that other work on the machine meets them alike. Those of PyTorch
need torch with transformers or vit-pytorch; where they are missing, the table says so.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

FRAMES, SIDE, CLASSES = 32, 224, 400
NEEDS = {  # what each needs installed, and which models it has
    "vivit": ((), ("joint", "factorised_encoder")),
    "scenic's way": ((), ("factorised_encoder",)),
    "transformers": (("torch", "transformers"), ("joint",)),
    "vit-pytorch": (("torch", "vit_pytorch"), ("factorised_encoder",)),
}
Runs = dict[str, Callable[[], object]]


def ours(model: str, *, batch: int, dtype: str, kernel: str) -> Runs:
    import vivit

    fields = {"family": model, "size": "B/16x2", "readout": "mean", "kernel": kernel}
    built = vivit.build(
        {**fields, "clip": (FRAMES, SIDE, SIDE), "classes": CLASSES, "dtype": dtype}
    )
    return _jax_runs(built, batch=batch)


def scenics_way(model: str, *, batch: int, dtype: str, kernel: str) -> Runs:
    import jax.numpy as jnp

    from benchmarks.scenic_way import FactorisedEncoder

    return _jax_runs(FactorisedEncoder(classes=CLASSES, dtype=jnp.dtype(dtype)), batch=batch)


def _jax_runs(model, *, batch: int) -> Runs:
    import jax
    import jax.numpy as jnp
    import optax

    clips = jax.random.uniform(jax.random.key(0), (batch, FRAMES, SIDE, SIDE, 3)) * 2 - 1
    labels = jnp.zeros((batch,), jnp.int32)
    optimizer = optax.adamw(1e-4)

    @jax.jit
    def start():
        params = model.init(jax.random.key(0), clips[:1])["params"]
        return params, optimizer.init(params)

    def loss(params):
        logits = model.apply({"params": params}, clips)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, optimizer_state):
        grads = jax.grad(loss)(params)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    forward = jax.jit(lambda params: model.apply({"params": params}, clips))
    step = jax.jit(step, donate_argnums=(0, 1))
    state = list(start())

    def train():
        state[:] = jax.block_until_ready(step(*state))

    return {"forward": lambda: jax.block_until_ready(forward(state[0])), "train": train}


def transformers_vivit(model: str, *, batch: int, dtype: str, kernel: str) -> Runs:
    import torch
    from transformers import VivitConfig, VivitForVideoClassification

    config = VivitConfig(
        num_frames=FRAMES, image_size=SIDE, tubelet_size=[2, 16, 16], num_labels=CLASSES
    )
    config._attn_implementation = "sdpa"
    built = VivitForVideoClassification(config)
    clips = torch.rand(batch, FRAMES, 3, SIDE, SIDE) * 2 - 1
    return _torch_runs(built, clips, lambda out: out.logits, dtype=dtype)


def vit_pytorch(model: str, *, batch: int, dtype: str, kernel: str) -> Runs:
    import torch

    # The module alone: the package's own import needs torchvision, which this model doesn't.
    folder = Path(importlib.util.find_spec("vit_pytorch").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("vit_pytorch_vivit", folder / "vivit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = module.ViViT(
        image_size=SIDE, image_patch_size=16, frames=FRAMES, frame_patch_size=2,
        num_classes=CLASSES, dim=768, spatial_depth=12, temporal_depth=4, heads=12,
        mlp_dim=3072, pool="mean",
    )  # fmt: skip
    clips = torch.rand(batch, 3, FRAMES, SIDE, SIDE) * 2 - 1
    return _torch_runs(built, clips, lambda out: out, dtype=dtype)


def _torch_runs(model, clips, logits_of, *, dtype: str) -> Runs:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    model, clips = model.to(device), clips.to(device)
    labels = torch.zeros(len(clips), dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    call = torch.compile(model) if device == "cuda" else model
    cast = torch.autocast(device, dtype=getattr(torch, dtype), enabled=dtype != "float32")

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad(), cast:
            call(clips)
        wait()

    def train():
        optimizer.zero_grad(set_to_none=True)
        with cast:
            out = logits_of(call(clips))
        torch.nn.functional.cross_entropy(out.float(), labels).backward()
        optimizer.step()
        wait()

    return {"forward": forward, "train": train}


MAKERS = {
    "vivit": ours,
    "scenic's way": scenics_way,
    "transformers": transformers_vivit,
    "vit-pytorch": vit_pytorch,
}


def work(name: str, arguments: argparse.Namespace) -> None:
    """In a process of one implementation: "forward" or "train" comes in, its times go out."""
    runs = MAKERS[name](
        arguments.model, batch=arguments.batch, dtype=arguments.dtype, kernel=arguments.kernel
    )
    for run in runs.values():  # compile and warm up
        run()
        run()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        began, spent = time.perf_counter(), time.process_time()
        runs[line.strip()]()
        times = (time.perf_counter() - began, time.process_time() - spent)
        print(json.dumps(times), flush=True)


class Worker:
    def __init__(self, name: str, argv: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *argv, "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.times: dict[str, list[tuple[float, float]]] = {"forward": [], "train": []}
        self.read()

    def read(self):
        for line in self.process.stdout:  # whatever else a library prints is passed over
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
        raise SystemExit(f"a worker ended with exit {self.process.wait()}")

    def run(self, what: str) -> None:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        self.times[what].append(tuple(self.read()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("joint", "factorised_encoder"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--kernel", default="auto", help="of this project (auto)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments)
        return
    workers, missing = {}, {}
    for name, (modules, models) in NEEDS.items():
        absent = [m for m in modules if importlib.util.find_spec(m) is None]
        if arguments.model in models and absent:
            missing[name] = absent
        elif arguments.model in models:
            workers[name] = Worker(name, sys.argv[1:])
    for _ in range(arguments.rounds):
        for what in ("forward", "train"):
            for worker in workers.values():
                worker.run(what)
    print(f"{arguments.model} B/16x2, {FRAMES}x{SIDE}x{SIDE}, batch {arguments.batch}, "
          f"{arguments.dtype}; medians of {arguments.rounds} rounds")  # fmt: skip
    print(
        "\n| | forward | its CPU time | training step | its CPU time |\n|---|---:|---:|---:|---:|"
    )
    for name, worker in workers.items():
        worker.close()
        cells = [
            f"{statistics.median(column):.2f} s"
            for what in ("forward", "train")
            for column in zip(*worker.times[what], strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    for name, absent in missing.items():
        print(f"| {name} | not run: {', '.join(absent)} not installed | | | |")


if __name__ == "__main__":
    main()

"""Run by test_parallel.py in processes of their own: training steps in float64, as npz files.

JAX_NUM_CPU_DEVICES=8 JAX_ENABLE_X64=1 python -m tests.eight_devices FOLDER \
    '{"by pmap": {"devices": 8, "mode": "pmap"}}' [HOST:PORT PROCESS]

Options of each: those of ParallelSettings, and "devices" of all processes, "kernel", "dropout",
"accumulate", "task", and "spoiled", a factor by which the loss is wrong. Float32 would hide a wrong
scale behind its rounding.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp

jnp.float32 = jnp.float64  # before anything else reads it: all that is float32 is float64

import jax
import numpy as np

import vivit
from vivit.optim import make_optimizer
from vivit.parallel import make_parallel
from vivit.settings import OptimSettings, ParallelSettings, TrainSettings
from vivit.step import make_eval_step, make_init, make_train_step
from vivit.tasks import Classify, make_objective

MODEL = {
    "clip": (4, 8, 8),
    "classes": 5,
    "width": 16,
    "depth": 1,
    "heads": 8,
    "mlp_dim": 16,
    "family": "joint",
    "tubelet": (2, 4, 4),
}


def main(folder, ways, coordinator=None, process="0"):
    if coordinator is not None:
        jax.distributed.initialize(coordinator, 2, int(process))
    for name, options in json.loads(ways).items():
        result = one_step(**options)
        if int(process) == 0:
            np.savez(Path(folder, f"{name}.npz"), **result)


def one_step(
    *, devices, kernel="dense", dropout=0.0, accumulate=1, task="", spoiled=1.0, **options
):
    smoothing, classes = (0.0, 0) if task else (0.1, 5)
    task = make_objective(task, {}) if task else Classify({"label": 5})
    average_decay = 0.5 if task.averages else None
    settings = TrainSettings(
        label_smoothing=smoothing, accumulate=accumulate, average_decay=average_decay
    )
    parallel = make_parallel(ParallelSettings(**options), jax.devices()[:devices])
    with parallel.ambient():
        model = vivit.build({**MODEL, "classes": classes, "dropout": dropout, "kernel": kernel})
    model = vivit.ViViT(replace(model.config, dtype="float64"))
    network = task.network(model)
    if not classes:
        (inner,) = (
            name for name in ("decoder_config", "predictor_config") if name in vars(network)
        )
        network = network.clone(**{inner: replace(getattr(network, inner), dtype="float64")})
    # Parameters become old parameters minus gradients, so they show these without any division.
    optim = OptimSettings(
        "sgd(momentum=0.0, weight_decay=0.0)", lr=1.0, schedule="cosine(floor=1.0)"
    )
    optimizer, _ = make_optimizer(replace(optim, clip_norm=None), steps=5, batch_size=8)
    make_state = make_init(network, optimizer, average_decay=average_decay)
    state = parallel.init(lambda seed: moved(make_state(seed)), 0)
    rng = np.random.default_rng(0)
    batch = {
        "clips": rng.integers(0, 256, (16, *model.config.clip, 3)).astype(np.uint8),
        "labels": rng.integers(0, 5, (16, 0) if classes == 0 else 16).astype(np.int32),
        "valid": (np.arange(16) < 13).astype(np.float64),  # uneven over the devices
        "indices": np.arange(16, dtype=np.uint32),
    }
    rows = np.arange(16).reshape(parallel.parts, -1)[parallel.part]
    placed = parallel.put({key: value[rows] for key, value in batch.items()})
    step = make_train_step(network, optimizer, task, settings)
    if spoiled != 1:
        step = spoil(step, spoiled)
    shards = len({str(s.index) for s in kernel_of(state).addressable_shards})
    state, sums = parallel.train(step, state)(state, placed)
    scores, of_clips = parallel.evaluate(make_eval_step(network, task))(state.eval_params, placed)
    gathered = jax.jit(lambda x: x, out_shardings=replicated(state))(state.params)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gathered)
    }
    order = np.argsort(np.asarray(of_clips["indices"]))
    rows = {key: np.asarray(of_clips[key])[order] for key in of_clips if of_clips[key].size}
    loss = float(sums["loss"][0]) / float(sums["loss"][1])
    rows["score"] = np.asarray(scores["loss"][0])
    return {"loss": loss, "devices": parallel.mesh.size, "shards": shards, **rows, **leaves}


def moved(state):
    """A state without zeros, through which every gradient flows, in float64."""
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = [x + 0.2 * jax.random.normal(keys[i], x.shape) for i, x in enumerate(leaves)]
    return replace(state, params=tree.unflatten(params))


def kernel_of(state):
    return state.params.get("encoder", state.params)["stage_0"]["layer_0"]["mlp"]["up"]["kernel"]


def replicated(state):
    spec = jax.sharding.PartitionSpec()
    return jax.sharding.NamedSharding(kernel_of(state).sharding.mesh, spec)


def spoil(step, factor):
    """A step whose device count is wrong: what a loss averaged wrongly looks like."""

    def spoiled(state, batch, **options):
        batch = {**batch, "valid": batch["valid"] * factor}
        new, sums = step(state, batch, **options)
        scale = lambda a, b: b + factor * (a - b)
        return replace(new, params=jax.tree.map(scale, new.params, state.params)), sums

    return spoiled


if __name__ == "__main__":
    main(*sys.argv[1:])

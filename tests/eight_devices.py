"""Run by test_parallel.py in processes of their own: five steps, and what came out, as an npz.

JAX_NUM_CPU_DEVICES=8 python tests/eight_devices.py OUT.npz MODE FSDP DROPOUT [SEQUENCE KERNEL]
"""

import sys

import jax
import numpy as np

import vivit
from tests.test_model import TINY
from vivit.optim import make_optimizer
from vivit.parallel import make_parallel
from vivit.settings import OptimSettings, ParallelSettings, TrainSettings
from vivit.step import make_eval_step, make_init, make_train_step


def main(out, mode, fsdp, dropout, sequence="1", kernel="dense"):
    model = vivit.build(
        {**TINY, "depth": 1, "family": "joint", "dropout": float(dropout), "kernel": kernel}
    )
    # SGD: AdamW's division would hide a wrong scale of the gradients.
    optim = OptimSettings("sgd(weight_decay=0.01)", lr=0.1, schedule="cosine(floor=0.1)")
    optimizer, _ = make_optimizer(optim, steps=5)
    parallel = make_parallel(ParallelSettings(mode, fsdp=int(fsdp), sequence=int(sequence)))
    state = parallel.init(make_init(model, optimizer, average_decay=0.9), 0)
    settings = TrainSettings(label_smoothing=0.1, average_decay=0.9)
    step = make_train_step(model, optimizer, settings)
    step = parallel.train(step, state)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(5):
        batch = {
            "clips": rng.integers(0, 256, (16, *model.config.clip, 3)).astype(np.uint8),
            "labels": rng.integers(0, 5, 16).astype(np.int32),
            "valid": (np.arange(16) < 13).astype(np.float32),  # uneven over the devices
        }
        state, sums = step(state, parallel.put(batch))
        losses.append(float(sums["loss"][0]) / float(sums["loss"][1]))
    evaluate = parallel.evaluate(make_eval_step(model))
    _, rows = evaluate(state.eval_params, parallel.put(batch))
    order = {key: np.asarray(rows[key]) for key in ("logits", "labels", "valid")}
    kernel = state.params["stage_0"]["layer_0"]["mlp"]["up"]["kernel"]
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.averaged))
    }
    np.savez(
        out,
        losses=losses,
        **order,
        devices=jax.device_count(),
        shards=len({str(shard.index) for shard in kernel.addressable_shards}),
        **leaves,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

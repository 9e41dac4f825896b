"""Masked autoencoding of moving digits, without labels (VideoMAE, 2203.12602).

    python -m vivit.train --config=configs/mae_digits.py --workdir=runs/mae_digits
    python -m vivit.probe --workdir=runs/mae_digits --label=motion --clips=400

Half of the time steps are hidden, so that what moves has to be understood; tubes, VideoMAE's mask,
learn much less here. Targets are raw pixels: most of a normalised patch is the renderer's noise.
docs/pretraining.md has the scores.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.task.name = (
        "mae(mask='frame(0.5)', width=48, depth=2, heads=4, normalise=False, probe='motion')"
    )
    config.data.label = ""
    config.model.update(width=96, depth=4, heads=4, mlp_dim=192, classes=0)
    config.model.update(family="joint", tubelet=(2, 8, 8), position="none", rope="3d")
    config.data.batch_size = 32
    config.optim.update(name="adamw(b2=0.95)", lr=1e-3, warmup_fraction=0.05)
    config.train.update(steps=1500, eval_every=250, checkpoint_every=500)
    return config

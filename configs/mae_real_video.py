"""Masked autoencoding of real footage, probed for how fast it runs (VideoMAE, 2203.12602).

    python -m experiments.real_video --films vtest.avi
    python -m vivit.train --config=configs/mae_real_video.py --workdir=runs/mae_real_video
    python -m vivit.probe --workdir=runs/mae_real_video --label=speed --checkpoint=latest

The clips are those of configs/real_video.py, without their labels. docs/pretraining.md has the
scores.
"""

from configs import mae_digits


def get_config():
    config = mae_digits.get_config()
    config.task.name = (
        "mae(mask='frame(0.5)', width=48, depth=2, heads=4, normalise=False, probe='speed')"
    )
    config.data.name = "real_video"
    config.data.views.short_side = 72
    config.augment.short_side = (68, 84)
    config.model.clip = (8, 64, 64)
    config.train.steps = 1000
    return config

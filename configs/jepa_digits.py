"""Prediction of features of moving digits, without labels (V-JEPA, 2404.08471).

    python -m vivit.train --config=configs/jepa_digits.py --workdir=runs/jepa_digits
    python -m vivit.probe --workdir=runs/jepa_digits --label=motion --checkpoint=latest

The encoder of mae_digits, an averaged copy of it that makes the targets, and a narrow predictor.
docs/pretraining.md has the scores.
"""

from configs import mae_digits


def get_config():
    config = mae_digits.get_config()
    config.task.name = (
        "jepa(masks=('blocks(4, 0.25)', 'tube(0.75)'), width=48, depth=2, heads=4, probe='motion')"
    )
    config.model.update(position="none", rope="3d")
    config.optim.update(name="adamw(weight_decay=0.04)", lr=1e-3, clip_norm=None)
    config.train.average_decay = 0.998
    return config

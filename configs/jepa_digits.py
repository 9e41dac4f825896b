"""Prediction of features of moving digits, without labels (V-JEPA, 2404.08471).

    python -m vivit.train --config=configs/jepa_digits.py --workdir=runs/jepa_digits
    python -m vivit.probe --workdir=runs/jepa_digits --label=motion --clips=400

The encoder and the mask of mae_digits, an averaged copy of the encoder that makes the targets, and
a narrow predictor. docs/pretraining.md has the scores.
"""

from configs import mae_digits


def get_config():
    config = mae_digits.get_config()
    config.task.name = "jepa(masks=('frame(0.5)',), width=48, depth=2, heads=4, probe='motion')"
    config.optim.update(name="adamw(weight_decay=0.04)", lr=1e-3, clip_norm=None)
    config.train.update(steps=2500, average_decay=0.996)
    return config

"""Two heads on the moving digits: how a digit moves, and which one it is.

    python -m experiments.launch --config=configs/motion_and_digit.py --sweep=seeds

docs/training.md has the scores.
"""

from configs import moving_digits

SEEDS = (0, 1, 2)


def get_config():
    config = moving_digits.get_config()
    config.task.heads = {"motion": 8, "digit": 10}
    config.data.label = ""
    config.model.classes = 18
    config.train.update(steps=2000, eval_every=500, checkpoint_every=500)
    return config


def sweep_seeds():
    for seed in SEEDS:
        yield {"seed": seed}

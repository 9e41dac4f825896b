"""Which digits occur in a clip of up to three: several classes per clip.

    python -m vivit.data prepare several_digits data
    python -m experiments.launch --config=configs/several_digits.py --sweep=seeds

The scores are mAP, over the digits (macro) and of all pairs of a clip and a digit (micro).
"""

from configs import moving_digits

SEEDS = (0, 1, 2)


def get_config():
    config = moving_digits.get_config()
    config.task.name = "multi_label"
    config.data.update(name="several_digits", label="digits")
    config.model.classes = 10
    config.train.update(steps=2000, eval_every=500, checkpoint_every=500)
    return config


def sweep_seeds():
    for seed in SEEDS:
        yield {"seed": seed}

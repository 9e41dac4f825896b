"""The ladder of regularisers of ViViT (2103.15691, section 4.2) on 1,000 clips of moving digits:
how a digit moves, and which one it is.

    python -m experiments.launch --config=configs/regularisers.py --sweep=ladder
    python -m experiments.collect runs/regularisers/ladder

Each rung adds one to those before it, in the paper's order and at its strengths for
Epic-Kitchens. docs/training.md has the scores.
"""

from configs import motion_and_digit

SEEDS = (0, 1, 2)
RUNGS = (
    {},
    {"model.drop_path": 0.2},
    {"augment.operations": 2, "augment.magnitude": 15.0},
    {"train.label_smoothing": 0.2},
    {"augment.mixup": 0.1},
)


def get_config():
    config = motion_and_digit.get_config()
    config.data.train_clips = 1000
    config.train.update(steps=400, eval_every=200, checkpoint_every=200)
    return config


def sweep_ladder():
    rung = {}
    for added in RUNGS:
        rung |= added
        for seed in SEEDS:
            yield {**rung, "seed": seed}

"""An image ViT of the moving digits: the central frame of each clip, which digit it is.

    python -m experiments.launch --config=configs/image_digits.py --sweep=seeds

About three minutes a run on two CPU cores. `configs/transfer_digits.py` starts from these runs;
docs/pretrained.md has the scores.
"""

from configs import moving_digits

SEEDS = (0, 1, 2)


def get_config():
    config = moving_digits.get_config()
    # One tubelet as long as the clip, of which one frame is seen: an image model.
    config.model.update(family="joint", embedding="uniform_frames", classes=10)
    config.model.tubelet = (16, 8, 8)
    config.data.label = "digit"
    config.train.update(steps=4000, eval_every=500, checkpoint_every=500, average_decay=None)
    return config


def sweep_seeds():
    for seed in SEEDS:
        yield {"seed": seed}

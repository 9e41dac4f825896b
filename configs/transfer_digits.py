"""From images to clips: the motion of moving digits, from an image model and from scratch.

    python -m experiments.launch --config=configs/image_digits.py --sweep=seeds
    python -m experiments.launch --config=configs/transfer_digits.py --sweep=start
    python -m experiments.steps_to_accuracy runs/transfer_digits/start --accuracy 0.5 0.9

ViViT (2103.15691), table 1, on moving digits: the image model's patch kernel goes to the central
frame of a tubelet, to all its frames, or nowhere ("fresh"; the rest is the image model's). The
learning rates are the better ones of seed 0: of 2e-3 and 4e-3 from scratch, of 8e-4, 2e-3, 4e-3 and
8e-3 from the image model. About ten minutes on two CPU cores; docs/pretrained.md has the table.
"""

from configs import moving_digits

SEEDS = (0, 1, 2)
INFLATIONS = ("central_frame", "average_frames", "fresh")


def get_config():
    config = moving_digits.get_config()
    config.train.update(steps=200, eval_every=20, average_decay=None)
    return config


def sweep_start():
    for seed in SEEDS:
        yield {"optim.lr": 2e-3, "seed": seed}  # from scratch
        for inflation in INFLATIONS:
            path = f"runs/image_digits/seeds/seed={seed}"
            start = {"init.inflation": inflation, "init.path": path}
            yield {**start, "optim.lr": 4e-3, "seed": seed}

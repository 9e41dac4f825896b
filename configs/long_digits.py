"""A factorised encoder on long clips of digits, which move for a sixth of the time.

    python -m vivit.data prepare long_digits data
    python -m vivit.train --config=configs/long_digits.py --workdir=runs/long_digits \\
        --config.init.path=runs/moving_digits

A run of `configs/moving_digits.py` is trained further on clips of every second frame, drawn at
random. They are a third of a long clip, whose label is known but not when it happens: many do not
show it. From random parameters the loss stays at that of chance for at least 600 steps.
"""

from configs import moving_digits


def get_config():
    config = moving_digits.get_config()
    config.data.name = "long_digits"
    config.data.sampling.stride_frames = 2
    config.data.views.temporal = 5
    config.train.steps = 1200
    return config

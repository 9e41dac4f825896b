"""ViViT-B/16x2 (2103.15691, model 1: joint attention) on Kinetics-400, as Scenic trained it.

    python -m vivit.data prepare k400.csv data --short-side 256 --name kinetics400
    python -m vivit.train --config=configs/vivit_b_k400.py --workdir=runs/vivit_b_k400 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_b_k400.py --target=h100:8

WEIGHTS: a ViT-B/16 of ImageNet-21k; see docs/pretrained.md. Scenic's checkpoint of this config has
79.9 % top-1 in 4 x 3 views (its README). Source: Scenic's projects/vivit/configs/kinetics400, and
the paper's table 7. Scenic shifts brightness by up to 32 of 255; here it is multiplied.
This config has not been trained here.
"""

from configs import common

# Of config.augment, for recipes that leave colours as they are.
NO_COLOUR = dict.fromkeys(
    ("colour_jitter", "grey", "brightness", "contrast", "saturation", "hue"), 0.0
)


def get_config():
    config = common.get_config()
    config.model.update(family="joint", size="B/16x2", classes=400, readout="cls")
    config.model.update(dtype="bfloat16", kernel="auto", scan=True)
    config.model.clip = (32, 224, 224)
    config.data.update(name="kinetics400", label="label", batch_size=64, threads=16)
    config.data.sampling.stride_frames = 2
    config.data.views.update(temporal=4, spatial=3, short_side=256)
    config.init.position_resize = "tile"
    config.augment.short_side = (230, 340)  # 0.9 to 1.33 times 256
    config.augment.update(flip=0.5, colour_jitter=0.8, grey=0.1)
    config.augment.update(brightness=0.125, contrast=0.4, saturation=0.4, hue=0.2)
    config.optim.update(name="sgd(momentum=0.9, weight_decay=0.0)", lr=0.1)
    config.optim.warmup_fraction = 2.5 / 30  # epochs
    config.train.update(steps=0, epochs=30.0)
    config.train.update(log_every=50, eval_every=4000, checkpoint_every=1000)
    return config

"""ViViT-L/16x2 FE (2103.15691, model 2) on Something-Something v2, as Scenic trained it.

    python -m vivit.data prepare ssv2.csv data --short-side 288 --name something_something_v2
    python -m vivit.train --config=configs/vivit_l_fe_ssv2.py --workdir=runs/vivit_l_fe_ssv2 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_l_fe_ssv2.py --target=h100:8

WEIGHTS: a ViViT-L/16x2 FE of Kinetics. Source: Scenic's
projects/vivit/configs/something_something_v2, and the paper's table 7, whose learning rate is 0.5
and whose crops are 224 pixels; the paper's table 6 has 65.9 % top-1. Classes that tell left from
right become their mirror image where a clip is flipped. This config has not been trained here.
"""

from configs import vivit_b_k400, vivit_l_fe_k400


def get_config():
    config = vivit_l_fe_k400.get_config()
    config.model.update(classes=174, drop_path=0.3)
    config.model.family = "factorised_encoder(temporal_depth=4)"
    config.model.clip = (32, 256, 256)
    config.data.name = "something_something_v2"
    config.data.sampling.stride_frames = 1
    config.data.views.short_side = 288
    config.augment.short_side = (259, 383)  # 0.9 to 1.33 times 288
    config.augment.update(vivit_b_k400.NO_COLOUR)
    config.augment.update(operations=2, magnitude=20.0, mixup=0.3)
    config.init.position_resize = "linear"
    config.optim.update(lr=0.4, warmup_fraction=2.5 / 35)
    config.train.update(epochs=35.0, label_smoothing=0.3)
    return config

"""ViViT-L/16x2 FE (2103.15691, model 2) on Epic-Kitchens-100: two heads, nouns and verbs.

    python -m vivit.data prepare ek100.csv data --short-side 256 --name epic_kitchens_100
    python -m vivit.train --config=configs/vivit_l_fe_ek100.py --workdir=runs/vivit_l_fe_ek100 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_l_fe_ek100.py --target=h100:8

WEIGHTS: a ViViT-L/16x2 FE of Kinetics. Source: Scenic's projects/vivit/configs/epic_kitchens, and
the paper's table 7; its table 6 has 44.0 % top-1 of actions (both right), 66.4 % of verbs and
56.8 % of nouns. The loss is the mean of the two heads', as Scenic's. This config has not been
trained here.
"""

from configs import vivit_b_k400, vivit_l_fe_k400


def get_config():
    config = vivit_l_fe_k400.get_config()
    config.model.update(classes=397, drop_path=0.2)
    config.model.family = "factorised_encoder(temporal_depth=4)"
    config.task.heads = {"noun": 300, "verb": 97}
    config.data.update(name="epic_kitchens_100", label="")
    config.data.sampling.stride_frames = 1
    config.augment.update(vivit_b_k400.NO_COLOUR)
    config.augment.update(operations=2, magnitude=15.0, mixup=0.1)
    config.optim.update(lr=0.5, warmup_fraction=2.5 / 50)
    config.train.update(epochs=50.0, label_smoothing=0.2)
    return config

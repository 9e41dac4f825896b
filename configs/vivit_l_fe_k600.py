"""ViViT-L/16x2 FE (2103.15691, model 2: factorised encoder) on Kinetics-600, as Scenic trained it.

    python -m vivit.data prepare k600.csv data --short-side 256 --name kinetics600
    python -m vivit.train --config=configs/vivit_l_fe_k600.py --workdir=runs/vivit_l_fe_k600 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_l_fe_k600.py --target=h100:8

WEIGHTS: a ViT-L/16 of ImageNet-21k. Scenic's checkpoint of this config has 81.6 % top-1 in 4 x 3
views (its README). This config has not been trained here.
"""

from configs import vivit_l_fe_k400


def get_config():
    config = vivit_l_fe_k400.get_config()
    config.model.classes = 600
    config.data.name = "kinetics600"
    config.optim.lr = 0.05
    return config

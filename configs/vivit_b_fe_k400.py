"""ViViT-B/16x2 FE (2103.15691, model 2: factorised encoder) on Kinetics-400, as Scenic trained it.

    python -m vivit.train --config=configs/vivit_b_fe_k400.py --workdir=runs/vivit_b_fe_k400 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_b_fe_k400.py --target=h100:8

Data and WEIGHTS: as configs/vivit_b_k400.py. Scenic's checkpoint of this config has 78.4 % top-1 in
4 x 3 views (its README). This config has not been trained here.
"""

from configs import vivit_b_k400


def get_config():
    config = vivit_b_k400.get_config()
    config.model.family = "factorised_encoder"
    config.optim.lr = 0.05
    return config

"""ViViT-L/16x2 FE (2103.15691, model 2: factorised encoder) on Kinetics-400, as Scenic trained it.

    python -m vivit.train --config=configs/vivit_l_fe_k400.py --workdir=runs/vivit_l_fe_k400 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_l_fe_k400.py --target=h100:8

Data: as configs/vivit_b_k400.py. WEIGHTS: a ViT-L/16 of ImageNet-21k. Scenic's checkpoint has
80.3 % top-1 in 4 x 3 views (its README), and its config 24 layers over time; the paper's model has
4. This config has not been trained here.
"""

from configs import vivit_b_k400


def get_config():
    config = vivit_b_k400.get_config()
    config.model.update(size="L/16x2", family="factorised_encoder(temporal_depth=24)")
    return config

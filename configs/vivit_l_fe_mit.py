"""ViViT-L/16x2 FE (2103.15691, model 2: factorised encoder) on Moments in Time, by the paper.

    python -m vivit.data prepare mit.csv data --short-side 256 --name moments_in_time
    python -m vivit.train --config=configs/vivit_l_fe_mit.py --workdir=runs/vivit_l_fe_mit \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/vivit_l_fe_mit.py --target=h100:8

WEIGHTS: a ViT-L/16 of ImageNet-21k. The paper's table 6 has 38.5 % top-1; learning rate, epochs and
augmentation are those of its table 7. This config has not been trained here.
"""

from configs import vivit_l_fe_k400


def get_config():
    config = vivit_l_fe_k400.get_config()
    config.model.update(classes=339, family="factorised_encoder(temporal_depth=4)")
    config.data.name = "moments_in_time"
    config.data.sampling.stride_frames = 1
    config.optim.update(lr=0.25, warmup_fraction=2.5 / 10)
    config.train.epochs = 10.0
    return config

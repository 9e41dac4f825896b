"""VideoMAE ViT-B (2203.12602), pre-trained on Something-Something v2 without its labels, by its
published script.

    python -m vivit.train --config=configs/videomae_pretrain_b_ssv2.py --workdir=runs/videomae_ssv2
    python -m vivit.compile --config=configs/videomae_pretrain_b_ssv2.py --target=h100:8 \\
        --frame=256x340

Data: as configs/vivit_l_fe_ssv2.py. Source: the paper's appendix and scripts/pretrain of its code,
which trains on 64 V100; crops as in configs/videomae_pretrain_b_k400.py. After 2,400 epochs and
fine-tuning the paper has 70.8 % top-1 (2 x 3 views). This config has not been trained here.
"""

from configs import videomae_pretrain_b_k400


def get_config():
    config = videomae_pretrain_b_k400.get_config()
    config.data.name = "something_something_v2"
    config.data.sampling.stride_frames = 2
    config.optim.warmup_fraction = 40 / 2400
    config.train.epochs = 2400.0
    return config

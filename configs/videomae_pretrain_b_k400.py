"""VideoMAE ViT-B (2203.12602), pre-trained on Kinetics-400 without its labels, by its published
script.

    python -m vivit.train --config=configs/videomae_pretrain_b_k400.py --workdir=runs/videomae_b
    python -m vivit.compile --config=configs/videomae_pretrain_b_k400.py --target=h100:8 \\
        --frame=256x340

Data: as configs/vivit_b_k400.py. Source: the paper's appendix and scripts/pretrain of its code,
which trains on 64 V100. Its crops are of 1, 0.875, 0.75 or 0.66 of the frame's short side at 13
places and may be wider than high; here the side is drawn from 0.66 to 1 of it, at any place, and is
square. After 1,600 epochs and fine-tuning the paper has 81.5 % top-1 (5 x 3 views). This config has
not been trained here.
"""

from configs import videomae_b_k400, vivit_b_k400


def get_config():
    config = videomae_b_k400.get_config()
    config.task.name = "mae(mask='tube(0.9)', width=384, depth=4, heads=6)"
    config.data.label = ""
    config.model.update(classes=0, readout="mean", drop_path=0.0)
    config.data.batch_size = 2048
    config.data.views.update(temporal=1, spatial=1)
    config.augment.short_side = (224, 340)
    config.augment.update(vivit_b_k400.NO_COLOUR)
    config.augment.update(flip=0.0, operations=0, magnitude=9.0, erase=0.0, mixup=0.0, cutmix=0.0)
    config.optim.update(name="adamw(b2=0.95, weight_decay=0.05)", lr=1.5e-4, lr_batch_size=256)
    config.optim.update(schedule="cosine(floor=8e-5)", layer_decay=1.0, clip_norm=None)
    config.optim.warmup_fraction = 40 / 1600
    config.train.update(epochs=1600.0, label_smoothing=0.0, accumulate=1)
    return config

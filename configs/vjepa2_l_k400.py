"""V-JEPA 2 ViT-L (2506.09985), pre-trained on Kinetics-400 without its labels.

    python -m vivit.train --config=configs/vjepa2_l_k400.py --workdir=runs/vjepa2_l
    python -m vivit.compile --config=configs/vjepa2_l_k400.py --target=h100:128 --frame=256x340

Data: as configs/vivit_b_k400.py. Source: the released configs/train of facebookresearch/vjepa2,
which trains on Kinetics-710, Something-Something v2 and HowTo100M, on 128 GPUs, and warms up from
1e-4 where this config starts at 0. Masks keep a fixed number of tokens (docs/pretraining.md); the
released ones are 'blocks_in_order'. The paper's ViT-L has 73.7 % top-1 on Something-Something v2 by
an attentive probe (table 4), after its cool-down. This config has not been trained here.
"""

from configs import vivit_b_k400


def get_config():
    config = vivit_b_k400.get_config()
    config.init.position_resize = "linear"  # the default: there are no image weights
    config.task.name = "jepa(masks=('blocks(8, 0.15)', 'blocks(2, 0.7)'), width=384, depth=12)"
    config.data.label = ""
    config.model.update(size="L/16x2", classes=0, readout="mean", activation="gelu")
    config.model.update(clip=(16, 256, 256), position="none", rope="3d_vjepa2", remat="full")
    config.model.update(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
    config.data.batch_size = 3072
    config.data.sampling.stride_seconds = 0.25  # 4 frames per second
    config.data.views.update(temporal=1, spatial=1, short_side=None)
    config.augment.short_side = (256, 467)  # crops of 0.3 to 1 of the frame's area
    config.augment.update(vivit_b_k400.NO_COLOUR)
    config.optim.update(name="adamw(weight_decay=0.04)", lr=5.25e-4, schedule="constant")
    config.optim.update(warmup_steps=12_000, warmup_fraction=0.0, clip_norm=None)
    config.train.update(steps=240_000, epochs=0.0, average_decay=0.99925)
    return config

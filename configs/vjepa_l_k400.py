"""V-JEPA ViT-L (2404.08471), pre-trained on Kinetics-400 without its labels.

    python -m vivit.train --config=configs/vjepa_l_k400.py --workdir=runs/vjepa_l
    python -m vivit.compile --config=configs/vjepa_l_k400.py --target=h100:128 --frame=256x340

Source: the paper's appendix and the released configs of facebookresearch/jepa, which trains on
Kinetics-710, Something-Something v2 and HowTo100M (VideoMix2M). Averaging falls over 1.25 times the
run, weight decay rises from 0.04 to 0.4, and each mask has its own token; the rate warms up from 0,
not from 2e-4, and its cosine is not stretched. The paper's ViT-L has 80.8 % top-1 on Kinetics-400
and 69.5 % on Something-Something v2 by an attentive probe. This config has not been trained here.
"""

from configs import vjepa2_l_k400


def get_config():
    config = vjepa2_l_k400.get_config()
    config.task.name = (
        "jepa(masks=('blocks(8, 0.15)', 'blocks(2, 0.7)'), width=384, depth=12, mask_tokens=2)"
    )
    config.model.update(clip=(16, 224, 224), position="sinusoidal_separable", rope="none")
    config.data.sampling.update(stride_frames=4, stride_seconds=None)
    config.augment.short_side = (224, 409)  # crops of 0.3 to 1 of the frame's area
    config.optim.update(name="adamw(weight_decay=0.4)", lr=6.25e-4, clip_norm=10.0)
    config.optim.update(schedule="cosine(floor=1e-6)")
    config.train.update(steps=90_000, average_decay=0.998)
    config.train.ramps = {"weight_decay": "rising_cosine(0.1)", "averaging": "falling(1.25)"}
    return config

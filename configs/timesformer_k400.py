"""TimeSformer (2102.05095: divided space-time attention) on Kinetics-400, by its published config.

    python -m vivit.train --config=configs/timesformer_k400.py --workdir=runs/timesformer_k400 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/timesformer_k400.py --target=h100:8 --frame=256x340

Data: as configs/vivit_b_k400.py. WEIGHTS: a ViT-B/16 of ImageNet-21k. Its model zoo has 77.9 %
top-1 in 1 x 3 views. Source: TimeSformer's configs/Kinetics/TimeSformer_divST_8x32_224.yaml; weight
decay shrinks kernels alone here. This config has not been trained here.
"""

from configs import vivit_b_k400


def get_config():
    config = vivit_b_k400.get_config()
    config.model.update(family="divided", activation="gelu")
    config.model.update(size="B", tubelet=(1, 16, 16), clip=(8, 224, 224))
    config.model.update(pixel_mean=(0.45, 0.45, 0.45), pixel_std=(0.225, 0.225, 0.225))
    config.data.sampling.stride_frames = 32
    config.data.views.update(temporal=1, spatial=3, short_side=None)
    config.augment.short_side = (256, 320)
    config.augment.update(vivit_b_k400.NO_COLOUR)
    config.optim.update(name="sgd(momentum=0.9, weight_decay=1e-4)", lr=0.005, clip_norm=None)
    config.optim.update(schedule=f"steps(({11 / 15:.3f}, {14 / 15:.3f}))", warmup_fraction=0.0)
    config.train.epochs = 15.0
    return config

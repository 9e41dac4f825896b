"""Which way time runs in real footage, or how fast, by a small factorised encoder.

    python -m experiments.real_video

cuts, prepares, trains, evaluates and shows; docs/data.md has the scores. A toy, for a few short
films. Nothing is flipped: which way things move is what tells the direction of time here.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.update(name="real_video", label="direction", batch_size=32)
    config.data.views.update(short_side=72)
    config.augment.short_side = (68, 84)
    config.model.update(width=96, depth=3, heads=4, mlp_dim=192)
    config.model.update(clip=(8, 64, 64), classes=2, family="factorised_encoder(temporal_depth=2)")
    config.model.tubelet = (2, 8, 8)
    config.optim.update(name="adamw(b2=0.98)", lr=2e-3, warmup_fraction=0.1)
    config.train.update(steps=2000, eval_every=250, checkpoint_every=250, average_decay=0.98)
    return config

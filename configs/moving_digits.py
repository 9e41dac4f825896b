"""A small factorised encoder (ViViT, 2103.15691, model 2) on the moving digits."""

from configs import common


def get_config():
    config = common.get_config()
    config.model.update(width=96, depth=4, heads=4, mlp_dim=192, temporal_depth=2)
    config.model.tubelet = (2, 8, 8)
    return config

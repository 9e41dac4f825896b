"""The cool-down of V-JEPA 2 ViT-L: longer clips, and a learning rate that falls to 0.

    python -m vivit.train --config=configs/vjepa2_l_cooldown_k400.py --workdir=runs/vjepa2_cd \\
        --config.init.path=runs/vjepa2_l --config.init.checkpoint=latest \\
        --config.init.optimizer=True
    python -m vivit.compile --config=configs/vjepa2_l_cooldown_k400.py --target=h100:128 \\
        --frame=256x340

Source: as configs/vjepa2_l_k400.py: 12,000 steps of 64 frames without warm-up, from encoder,
averaged encoder, predictor and optimiser of the run. The released code's rate ends at 1.06e-4, as
its schedule is stretched by 1.25. This config has not been trained here.
"""

from configs import vjepa2_l_k400


def get_config():
    config = vjepa2_l_k400.get_config()
    config.model.clip = (64, 256, 256)
    config.optim.update(schedule="linear(floor=1e-6)", warmup_steps=0)
    config.train.steps = 12_000
    return config

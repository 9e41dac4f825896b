"""Ablation on the moving digits: families, further patterns, kernels; five seeds each.

python -m experiments.launch --config=configs/ablate_attention.py --sweep=family
python -m experiments.collect runs/ablate_attention/family
"""

from configs import moving_digits

SEEDS = (0, 1, 2, 3, 4)
FAMILIES = (
    "factorised_encoder(2)",
    "joint",
    "factorised_self_attention",
    "factorised_dot_product",
    "average_pool",
)
VARIANTS = (
    "divided",
    "axial",
    "local_global",
    "window(4, 2, 2)",
    "neighbourhood(3, 3, 3)",
    "trajectory",
)


def get_config():
    return moving_digits.get_config()


def _family(name):
    """The average-pool baseline sees one frame per tubelet, so it cannot know the frames' order."""
    one_frame = {"model.tubelet": (1, 8, 8)} if name == "average_pool" else {}
    return {"model.family": name, **one_frame}


def sweep_family():
    for family in FAMILIES:
        for seed in SEEDS:
            yield {**_family(family), "seed": seed}


def sweep_variant():
    for family in VARIANTS:
        for seed in SEEDS:
            yield {"model.family": family, "seed": seed}


def sweep_kernel():
    for family in FAMILIES:
        for kernel in ("dense", "chunked"):
            for seed in SEEDS:
                yield {**_family(family), "model.kernel": kernel, "seed": seed}

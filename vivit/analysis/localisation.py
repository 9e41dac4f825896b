"""Do attributions lie on the object, where a data set says where that is?"""

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Bool, Float

from vivit.model.config import ModelConfig


def coverage(masks: Bool[np.ndarray, "B F H W"], config: ModelConfig) -> Float[np.ndarray, "B T S"]:
    """Returns the part of each token's pixels that are in the masks."""
    t, h, w = config.tubelet
    pattern = "B (T t) (Y h) (X w) -> B T (Y X)"
    return reduce(masks.astype(np.float64), pattern, "mean", t=t, h=h, w=w)


def localisation(
    attributions: Float[np.ndarray, "B T S"],
    masks: Bool[np.ndarray, "B F H W"],
    config: ModelConfig,
) -> dict[str, Float[np.ndarray, " B"]]:
    """Returns "pointing" and "iou" of each clip.

    pointing: of the frames that have a mask, the part in which the middle of the largest token of
    its time step is in it: the pointing game of Zhang et al. (1608.00507), section 4.1, without a
    margin. Tokens that are equally large count equally. iou: the intersection over the union, in
    pixels, of the mask and as many of the largest tokens as have its size. 1 is out of reach where
    tokens are coarse: the coverage as attributions has the largest that is possible. Both are NaN
    of a clip without any mask.
    """
    heat = np.asarray(attributions, np.float64)
    t, h, w = config.tubelet
    middles = rearrange(masks[:, :, h // 2 :: h, w // 2 :: w], "B F Y X -> B F (Y X)")
    hits = hits_of_largest(heat.repeat(t, axis=1), middles)
    frames = masks.any(axis=(2, 3)).sum(axis=1)
    some = np.where(frames > 0, frames, np.nan)
    pointing = hits.sum(axis=1) / some
    covered = coverage(masks, config).reshape(len(masks), -1)
    sizes = covered.sum(axis=1)  # of the masks, in tokens
    counts = np.maximum(sizes.round(), 1).astype(int)
    chosen = ranks(heat) < counts[:, None]
    common = (covered * chosen).sum(axis=1)
    return {"pointing": pointing, "iou": common / (sizes + counts - common) * some / some}


def hits_of_largest(
    values: Float[np.ndarray, "*maps S"], middles: Bool[np.ndarray, "*maps S"]
) -> Float[np.ndarray, "*maps"]:
    """Returns of each map 1 if its largest value is at a place that is in the mask, else 0; of
    several that are equally large, the part of them that are."""
    largest = values == values.max(axis=-1, keepdims=True)
    return (middles * largest).sum(axis=-1) / largest.sum(axis=-1)


def ranks(values: Float[np.ndarray, "B ..."]) -> np.ndarray:
    """Returns the rank of each of a clip's values, [B, values], from 0 for the largest. Equal ones
    are in no order, always the same one."""
    flat = values.reshape(len(values), -1)
    draw, count = np.random.default_rng(0), flat.shape[1]  # relu leaves many zeros
    return np.argsort([np.lexsort((draw.permutation(count), -row)) for row in flat], axis=1)

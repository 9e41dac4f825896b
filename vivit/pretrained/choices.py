"""What a user chooses of how parameters that a source does not have are made.

The entries of all registries are functions of a source's array that return the model's array, or
None for a parameter that is newly initialised.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from vivit.registry import Registry

Kernel = Float[np.ndarray, "h w C D"]
TubeletKernel = Float[np.ndarray, "t h w C D"]
Inflated = Float[np.ndarray, "t2 h w C D"]

# (the source's array, classes of the model) -> the model's: of the head's kernel and of its bias.
HEADS: Registry[Callable[[np.ndarray, int], np.ndarray | None]] = Registry("head")
HEADS.add("auto", lambda array, classes: array if array.shape[-1] == classes else None)
HEADS.add("keep", lambda array, classes: array)
HEADS.add("replace", lambda array, classes: None)

CLASS_TOKENS: Registry[Callable[[np.ndarray], np.ndarray | None]] = Registry("class_token")
CLASS_TOKENS.add("keep", lambda token: token)
CLASS_TOKENS.add("fresh", lambda token: None)

# (part, array, projected) -> the array of a new attention over time, from an attention that the
# source's block has. part: "norm", for the layer norm before it, or the name of one of its dense
# layers, "query", "key", "value" or "out". projected: whether a second dense layer, which starts at
# zero, follows the output's.
TimeAttention = Callable[[str, np.ndarray, bool], np.ndarray | None]
TIME_ATTENTIONS: Registry[TimeAttention] = Registry("time_attention")
TIME_ATTENTIONS.add("copy", lambda part, array, projected: array)
TIME_ATTENTIONS.add("scenic", lambda part, array, projected: None if part == "norm" else array)
TIME_ATTENTIONS.add("fresh", lambda part, array, projected: None)


@TIME_ATTENTIONS.register("zero_out")
def zero_out(part: str, array: np.ndarray, projected: bool) -> np.ndarray:
    """Returns the source's array, or zeros for the output, unless its projection is zero."""
    return np.zeros_like(array) if part == "out" and not projected else array


# (a kernel of one frame, frames of a tubelet) -> the tubelet's kernel.
INFLATIONS: Registry[Callable[[Kernel, int], TubeletKernel | None]] = Registry("inflation")
INFLATIONS.add("fresh", lambda kernel, frames: None)


@INFLATIONS.register("central_frame")
def central_frame(kernel: Kernel, frames: int) -> TubeletKernel:
    """Returns zeros but for the central frame, frames // 2; ViViT (2103.15691), equation 9."""
    out = np.zeros((frames, *kernel.shape), kernel.dtype)
    out[frames // 2] = kernel
    return out


@INFLATIONS.register("average_frames")
def average_frames(kernel: Kernel, frames: int) -> TubeletKernel:
    """Returns an equal part at every frame, "filter inflation"; ViViT, equation 8, after
    1705.07750."""
    return np.tile(kernel[None] / frames, (frames, 1, 1, 1, 1))


@INFLATIONS.register("rank_pooling")
def rank_pooling(kernel: Kernel, frames: int) -> TubeletKernel:
    """Returns frames weighted by approximate rank pooling, which encodes their order; Bilen et al.
    (1612.00738), equation 3, over the number of frames. A still clip gives zero.

    Raises ValueError for one frame, which has no order.
    """
    if frames < 2:
        raise ValueError("rank_pooling needs tubelets of at least 2 frames")
    t = np.arange(1, frames + 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / t)])
    weights = 2 * (frames - t + 1) - (frames + 1) * (harmonic[-1] - harmonic[:-1])
    shaped = (weights / frames).reshape(-1, 1, 1, 1, 1)
    return (kernel[None] * shaped).astype(kernel.dtype)


def inflate(kernel: TubeletKernel, frames: int, *, method: str) -> Inflated | None:
    """Returns a tubelet kernel for tubelets of another number of frames.

    A kernel of several frames is summed first, which is what it computes for a still clip;
    central_frame and average_frames keep that.
    """
    if kernel.shape[0] == frames:
        return kernel
    still = kernel[0] if len(kernel) == 1 else kernel.sum(axis=0)
    return INFLATIONS[method](still, frames)

"""Clips that look alike, by perceptual hashes of some of their frames."""

import numpy as np
from jaxtyping import UInt8, UInt64
from PIL import Image

from vivit.data.video import VideoReader

MOMENTS = (0.25, 0.5, 0.75)  # of a clip
NEAR = 8  # of 64 bits in which frames that look alike may differ
AGREEING = 2  # frames of the MOMENTS that must have one that looks alike in the other clip
FLAT = 4.0  # standard deviation of the grey values below which a frame says nothing
FLAT_HASH = np.uint64(0)
BLOCK = 1 << 22  # pairs of hashes that are compared at once


def hash_frame(frame: UInt8[np.ndarray, "H W 3"]) -> np.uint64:
    """Returns 64 bits: whether each of 8 x 9 grey areas is darker than its right neighbour (dHash).

    0 for a frame without structure.
    """
    small = Image.fromarray(frame).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    if grey.std() < FLAT:
        return FLAT_HASH
    return np.packbits(grey[:, :-1] < grey[:, 1:]).view(np.uint64)[0]


def hash_clip(video: VideoReader) -> UInt64[np.ndarray, " K"]:
    """Returns the hashes of a clip's frames at MOMENTS; ClipReadError if they can't be read."""
    numbers = (np.array(MOMENTS) * (len(video.times) - 1)).round().astype(int)
    return np.array([hash_frame(frame) for frame in video.read(numbers, None)], np.uint64)


def similar_pairs(hashes: UInt64[np.ndarray, "N K"], splits: list[str]) -> list[tuple[int, int]]:
    """Returns pairs of clips of different splits that look alike; 0 stands for no hash."""
    pairs = []
    names = sorted(set(splits))
    places = {name: np.flatnonzero([s == name for s in splits]) for name in names}
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            pairs += _between(hashes, places[one], places[other])
    return sorted(pairs)


def _between(hashes, one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    right = hashes[other]  # [M, K]
    step = max(1, BLOCK // max(right.size, 1))
    pairs = []
    for start in range(0, len(one), step):
        rows = one[start : start + step]
        left = hashes[rows]
        agreeing = np.zeros((len(rows), len(other)), int)
        for k in range(left.shape[1]):
            alike = np.zeros(agreeing.shape, bool)
            for j in range(right.shape[1]):
                distance = np.bitwise_count(left[:, k, None] ^ right[None, :, j])
                known = (left[:, k, None] != FLAT_HASH) & (right[None, :, j] != FLAT_HASH)
                alike |= known & (distance <= NEAR)
            agreeing += alike
        for i, j in np.argwhere(agreeing >= AGREEING):
            a, b = int(rows[i]), int(other[j])
            pairs.append((min(a, b), max(a, b)))
    return pairs

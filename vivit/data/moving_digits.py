"""Moving digits: real handwritten digits whose motion is the label.

A TFDS builder, written as ArrayRecord, that needs no TensorFlow. The 1,797 images are the test part
of UCI's "Optical Recognition of Handwritten Digits", as scikit-learn ships them (8 x 8 pixels).

The labels come in pairs that are each other's time reversal. All that one frame shows has the same
distribution for all labels: a digit's place is uniform on a torus (what leaves on one side enters
on the other), its size is log-uniform on a ring (growing past the largest size continues at the
smallest), and the background stands still. Turns run along about half a circle, over its top. So a
single frame says nothing about the motion, and an unordered set of frames nothing about its
direction: a clip played backwards is as likely a clip of the opposite label.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

FRAMES, SIDE = 16, 32
DIGITS = [str(d) for d in range(10)]
MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink")
SPLITS = {"train": 8192, "validation": 1024, "test": 2048}  # clips
IMAGES = {"train": 1197, "validation": 200, "test": 400}  # digit images; disjoint
SPEEDS = (1.0, 2.0)  # pixels per frame
RADII = (5.0, 9.0)  # pixels
TURNS = (0.8 * np.pi, 1.2 * np.pi)  # of a whole clip
SLANT = 0.4  # radians between an arc's middle and the top of its circle
SMALLEST, LARGEST = 9.0, 20.0  # pixels across a digit
GROWTHS = (0.03, 0.06)  # of the ring of sizes per frame
MOST_DIGITS = 3  # of a clip of SeveralDigits
CLUTTER = 10  # pieces of other digits in the background
SEED = 0


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Clips of one moving digit over a cluttered grey background; see the module's docstring."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "8 motions, 10 digits, 16 frames of 32 x 32."}

    def _info(self) -> tfds.core.DatasetInfo:
        number = tfds.features.Scalar(dtype=np.int64)
        return _describe(
            self,
            # image: of scikit-learn's 1,797
            features={"motion": number, "digit": number, "image": number},
            labels={"motion": list(MOTIONS), "digit": DIGITS},
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        images, digits = load_digits()
        chosen = split_images(digits)[split]
        for i in range(SPLITS[split]):
            motion = i % len(MOTIONS)  # balanced; readers shuffle
            rng = np.random.default_rng([SEED, list(SPLITS).index(split), i])
            image = int(rng.choice(chosen))
            clip = render([(MOTIONS[motion], image)], chosen, images, rng=rng)
            digit = int(digits[image])
            yield i, {"clip": clip.tobytes(), "motion": motion, "digit": digit, "image": image}


class SeveralDigits(tfds.core.GeneratorBasedBuilder):
    """Clips of one to three digits, each with a motion of its own; which digits occur is the label,
    so a clip may have several classes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "1 to 3 of 10 digits, 16 frames of 32 x 32."}

    def _info(self) -> tfds.core.DatasetInfo:
        numbers = tfds.features.Tensor(shape=(None,), dtype=np.int64)
        return _describe(
            self, features={"digits": numbers}, labels={"digits": DIGITS}, several=["digits"]
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        images, digits = load_digits()
        chosen = split_images(digits)[split]
        for i in range(SPLITS[split]):
            rng = np.random.default_rng([SEED, list(SPLITS).index(split), i])
            drawn = rng.choice(chosen, size=1 + i % MOST_DIGITS)
            moving = [(MOTIONS[rng.integers(len(MOTIONS))], int(image)) for image in drawn]
            clip = render(moving, chosen, images, rng=rng)
            yield i, {"clip": clip.tobytes(), "digits": np.unique(digits[drawn])}


def _describe(
    builder: tfds.core.GeneratorBasedBuilder, *, features: dict[str, Any], **metadata: Any
) -> tfds.core.DatasetInfo:
    """Returns the info of clips with these features and metadata."""
    # Raw bytes in C order: a Tensor(uint8) is slow to read without TensorFlow.
    clip = {"clip": tfds.features.Tensor(shape=(), dtype=np.object_)}
    return builder.dataset_info_from_configs(
        description=__doc__,
        homepage="https://archive.ics.uci.edu/dataset/80",
        features=tfds.features.FeaturesDict({**clip, **features}),
        metadata=tfds.core.MetadataDict(clip_shape=[FRAMES, SIDE, SIDE, 1], **metadata, seed=SEED),
    )


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns images [1797, 8, 8] in [0, 1] and their digits [1797]."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(
            "moving_digits is drawn from scikit-learn's images; run: pip install 'vivit[digits]'"
        ) from error
    digits: Any = datasets.load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


def split_images(digits: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the image numbers of each split. No image is in two splits."""
    order = np.random.default_rng(SEED).permutation(len(digits))
    ends = np.cumsum(list(IMAGES.values()))
    return dict(zip(IMAGES, np.split(order, ends)[:-1], strict=True))


def trajectory(motion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns places [F, 2] (x, y; pixels modulo SIDE, y points down) and sizes [F] of a digit.

    Every motion keeps the uniform distribution on the torus, and that of the size on its ring.
    """
    steps = np.arange(FRAMES)
    places = np.tile(rng.uniform(0, SIDE, size=2), (FRAMES, 1))
    phases = np.full(FRAMES, rng.uniform())  # of the size on its ring
    sign = 1 if motion in ("right", "down", "clockwise", "grow") else -1
    if motion in ("left", "right"):
        places[:, 0] += sign * steps * rng.uniform(*SPEEDS)
    elif motion in ("up", "down"):
        places[:, 1] += sign * steps * rng.uniform(*SPEEDS)
    elif motion in ("clockwise", "anticlockwise"):
        middle = -np.pi / 2 + rng.uniform(-SLANT, SLANT)  # the top; angles grow clockwise
        turn = rng.uniform(*TURNS) * np.linspace(-0.5, 0.5, FRAMES)
        angles = middle + sign * turn
        places += rng.uniform(*RADII) * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    else:
        phases += sign * steps * rng.uniform(*GROWTHS)
    return places, SMALLEST * (LARGEST / SMALLEST) ** (phases % 1)


def render(
    moving: Sequence[tuple[str, int]],
    others: np.ndarray,
    images: np.ndarray,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns uint8 [F, H, W, 1]: digits in motion, pairs of a motion and the number of an image,
    over pieces of the images `others`."""
    digits = []
    for motion, image in moving:
        places, sizes = trajectory(motion, rng)
        rows = _resampling(places[:, 1], sizes)
        columns = _resampling(places[:, 0], sizes)
        digits.append(np.einsum("fyi,ij,fxj->fyx", rows, images[image], columns))
    frames = np.maximum(_background(others, images, rng=rng), np.maximum.reduce(digits))
    frames = frames + rng.normal(0, 0.02, size=frames.shape)
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)[..., None]


def _resampling(centres: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns interpolation weights [F, SIDE, 8] of a digit by its centre on the torus and size."""
    offsets = np.arange(SIDE)[None] - centres[:, None]  # [F, SIDE]
    offsets = (offsets + SIDE / 2) % SIDE - SIDE / 2
    source = offsets * 8 / sizes[:, None] + 3.5
    return np.maximum(0, 1 - np.abs(source[..., None] - np.arange(8))).astype(np.float32)


def _background(others: np.ndarray, images: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Returns a still grey picture [SIDE, SIDE] with faint pieces of digits."""
    canvas = np.full((SIDE, SIDE), rng.uniform(0.1, 0.3), dtype=np.float32)
    for image, (y, x) in zip(
        rng.choice(others, CLUTTER), rng.integers(0, SIDE, (CLUTTER, 2)), strict=True
    ):
        i, j = rng.integers(0, 4, 2)
        piece = images[image, i : i + 5, j : j + 5] * rng.uniform(0.2, 0.5)
        at = np.ix_((y + np.arange(5)) % SIDE, (x + np.arange(5)) % SIDE)
        canvas[at] = np.maximum(canvas[at], piece)
    return canvas

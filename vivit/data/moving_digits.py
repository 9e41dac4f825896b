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
LONG_FRAMES = 6 * FRAMES  # of a clip of LongDigits, whose digit moves in FRAMES of them
SMALL = (9.0, 13.0)  # pixels across the digits that distract
TREMBLING = 2 * FRAMES  # frames
TREMOR = 3.0  # pixels
CLUTTER = 10  # pieces of other digits in the background
SEED = 0
# Of a digit in each frame: x and y of its centre, on a torus, and its size, in pixels. In frames in
# which it does not move the size is 0.
TRACK = tfds.features.Tensor(shape=(None, 3), dtype=np.float32)


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Clips of one moving digit over a cluttered grey background; see the module's docstring."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "8 motions, 10 digits, 16 frames of 32 x 32.",
        "1.1.0": "The digit's track. The clips are the same.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        number = tfds.features.Scalar(dtype=np.int64)
        return _describe(
            self,
            # image: of scikit-learn's 1,797
            features={"motion": number, "digit": number, "image": number, "track": TRACK},
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
            track = trajectory(MOTIONS[motion], rng)
            clip = render([(image, track)], chosen, images, rng=rng)
            of_clip = {"motion": motion, "digit": int(digits[image]), "image": image}
            yield i, {"clip": clip.tobytes(), "track": track.astype(np.float32), **of_clip}


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
            motions = [MOTIONS[rng.integers(len(MOTIONS))] for _ in drawn]
            moving = [
                (int(image), trajectory(motion, rng))
                for image, motion in zip(drawn, motions, strict=True)
            ]
            clip = render(moving, chosen, images, rng=rng)
            yield i, {"clip": clip.tobytes(), "digits": np.unique(digits[drawn])}


class LongDigits(tfds.core.GeneratorBasedBuilder):
    """Long clips in which a digit moves for a sixth of the time, and stands still before and after.

    The label is its motion, of the whole clip alone. Of two smaller digits one stands still and the
    other trembles for a third of the time, which is not the motion of any label.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "8 motions, 96 frames of 32 x 32."}

    def _info(self) -> tfds.core.DatasetInfo:
        number = tfds.features.Scalar(dtype=np.int64)
        return _describe(
            self,
            features={"motion": number, "track": TRACK},
            labels={"motion": list(MOTIONS)},
            frames=LONG_FRAMES,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        images, digits = load_digits()
        chosen = split_images(digits)[split]
        for i in range(SPLITS[split] // 2):
            motion = i % len(MOTIONS)
            rng = np.random.default_rng([SEED, list(SPLITS).index(split), i])
            image, *others = rng.choice(chosen, size=3).tolist()
            begin = int(rng.integers(LONG_FRAMES - FRAMES + 1))
            around = (begin, LONG_FRAMES - FRAMES - begin)  # frames in which it stands still
            moving = trajectory(MOTIONS[motion], rng)
            track = np.pad(moving, (around, (0, 0)), mode="edge")
            still, trembling = (_standing(rng) for _ in others)
            first = int(rng.integers(LONG_FRAMES - TREMBLING + 1))
            trembling[first : first + TREMBLING, :2] += rng.uniform(
                -TREMOR, TREMOR, size=(TREMBLING, 2)
            )
            tracks = [(image, track), *zip(others, (still, trembling), strict=True)]
            clip = render(tracks, chosen, images, rng=rng)
            known = np.pad(moving, (around, (0, 0))).astype(np.float32)
            yield i, {"clip": clip.tobytes(), "motion": motion, "track": known}


def _standing(rng: np.random.Generator) -> np.ndarray:
    """Returns the track of a small digit that stands still through a long clip."""
    return np.tile([*rng.uniform(0, SIDE, size=2), rng.uniform(*SMALL)], (LONG_FRAMES, 1))


def _describe(
    builder: tfds.core.GeneratorBasedBuilder,
    *,
    features: dict[str, Any],
    frames: int = FRAMES,
    **metadata: Any,
) -> tfds.core.DatasetInfo:
    """Returns the info of clips with these features and metadata."""
    # Raw bytes in C order: a Tensor(uint8) is slow to read without TensorFlow.
    clip = {"clip": tfds.features.Tensor(shape=(), dtype=np.object_)}
    return builder.dataset_info_from_configs(
        description=__doc__,
        homepage="https://archive.ics.uci.edu/dataset/80",
        features=tfds.features.FeaturesDict({**clip, **features}),
        metadata=tfds.core.MetadataDict(clip_shape=[frames, SIDE, SIDE, 1], **metadata, seed=SEED),
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


def trajectory(motion: str, rng: np.random.Generator) -> np.ndarray:
    """Returns the track of a digit [F, 3]: x and y of its centre (pixels modulo SIDE, y points
    down), and its size in pixels.

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
    sizes = SMALLEST * (LARGEST / SMALLEST) ** (phases % 1)
    return np.concatenate([places, sizes[:, None]], axis=1)


def render(
    moving: Sequence[tuple[int, np.ndarray]],
    others: np.ndarray,
    images: np.ndarray,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns uint8 [F, H, W, 1]: digits in motion, pairs of an image's number and a track, over
    pieces of the images `others`."""
    digits = []
    for image, track in moving:
        x, y, sizes = track.T
        rows, columns = _resampling(y, sizes), _resampling(x, sizes)
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

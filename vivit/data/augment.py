"""What training changes at random in a clip, on the device, inside the jitted step.

Every draw is made for a whole clip, from the seed and the clip's position in the order of training
alone: the same on any number of devices, under jit and pmap.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vivit.data import colour
from vivit.data.geometry import as_they_are, resample, to_uint8
from vivit.data.randaugment import randaugment
from vivit.data.sources import Split

# (batch on the device, key) -> the batch with clips of the model's size. Mixed clips have beside
# their labels the other clip's, `other_labels`, and the first label's `share`.
Augmentation = Callable[[dict[str, Array], Array], dict[str, Array]]


@dataclass(frozen=True)
class Augment:
    """`config.augment`. Probabilities are per clip; 0 leaves a step out.

    short_side: the least and the most pixels that frames are scaled to before the crop, as their
        short side; None leaves them as they are. crop: "random" or "centre".
    flip: probability. Labels that tell left from right become those of the mirror image.
    brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x; hue: turns from -x to x
        of the circle. colour_share: probability of all four. grey: probability.
    operations, magnitude: of RandAugment (1909.13719): how many, and their strength in 0 .. 10.
    erase: probability that a box of noise covers a part (1708.04896).
    mixup, cutmix: alpha of the Beta distribution of shares (1710.09412, 1905.04899); with both,
        each pair of clips gets one of them. Pairs are neighbours in the batch.
    """

    short_side: tuple[int, ...] | None = None
    crop: str = "random"
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    colour_share: float = 1.0
    grey: float = 0.0
    operations: int = 0
    magnitude: float = 9.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        for name in ("flip", "grey", "erase", "colour_share"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}={getattr(self, name)} is no probability")
        for name in ("brightness", "contrast", "saturation", "mixup", "cutmix", "operations"):
            if getattr(self, name) < 0:
                problems.append(f"{name}={getattr(self, name)} is below 0")
        if not 0 <= self.hue <= 0.5:
            problems.append(f"hue={self.hue} is not in 0 .. 0.5")
        if not 0 <= self.magnitude <= 10:
            problems.append(f"magnitude={self.magnitude} is not in 0 .. 10")
        if self.crop not in ("random", "centre"):
            problems.append(f"crop={self.crop!r} is neither random nor centre")
        range_ = tuple(self.short_side or (1, 1))
        if len(range_) != 2 or not 1 <= range_[0] <= range_[1]:
            problems.append(f"short_side={self.short_side} is no range of pixels")
        if problems:
            raise ValueError(f"augment: {'; '.join(problems)}")

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def build(
        self, split: Split, size: tuple[int, int], *, canvas: tuple[int, ...] | None = None
    ) -> Augmentation:
        """The augmentation of a split's clips to frames of `size`. ValueError if it can't be.

        canvas: that of the batches, where it is not what holds every frame.
        """
        height, width = size
        if self.short_side and self.short_side[0] < max(size):
            raise ValueError(
                f"augment.short_side={tuple(self.short_side)} is smaller than the model's "
                f"{height} x {width}"
            )
        stuck = [n for n, m in zip(split.class_names, split.mirrored, strict=True) if m < 0]
        if self.flip and stuck:
            raise ValueError(
                f"augment.flip={self.flip}: {', '.join(stuck[:5])} tell left from right, and the "
                "classes have no mirror image of them; set flip=0, or name one in the "
                "manifest's .classes.json"
            )
        on = tuple(canvas or split.largest)
        plain = not self.short_side and as_they_are(on, split.smallest, size)
        mirrored = np.array(split.mirrored)

        def augment(batch: dict[str, Array], key: Array) -> dict[str, Array]:
            keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(batch["positions"])
            one = lambda k, clip, extent: self._clip(k, clip, extent, size, plain)
            clips, flipped = jax.vmap(one)(keys, batch["clips"], batch["extents"])
            labels = jnp.where(flipped, jnp.asarray(mirrored)[batch["labels"]], batch["labels"])
            batch = {**batch, "labels": labels.astype(batch["labels"].dtype)}
            if self.mixes:
                # The draws of a pair are its first clip's, so that both agree.
                clips, batch = mix(clips, batch, keys, mixup=self.mixup, cutmix=self.cutmix)
            return {**batch, "clips": to_uint8(clips)}

        return augment

    def _clip(self, key: Array, clip: Array, extent: Array, size, plain: bool):
        """One clip, as floats in 0 .. 255, and whether it was flipped."""
        keys = jax.random.split(key, 6)
        flip = jax.random.bernoulli(keys[1], self.flip)
        if plain:
            clip = jnp.where(flip, clip[:, :, ::-1], clip).astype(jnp.float32)
        else:
            start, scale = self._box(keys[0], extent, size)
            clip = resample(clip, extent, start=start, scale=scale, size=size, flip=flip)
        if self.operations:
            clip = randaugment(clip, keys[2], count=self.operations, magnitude=self.magnitude / 10)
        if self.brightness or self.contrast or self.saturation or self.hue:
            clip = self._jitter(keys[3], clip)
        if self.grey:
            clip = jnp.where(jax.random.bernoulli(keys[4], self.grey), colour.grey(clip), clip)
        if self.erase:
            clip = erase(keys[5], clip, self.erase)
        return clip, flip

    def _box(self, key: Array, extent: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """Upper left corner and scale of the crop, in pixels of the frame."""
        first, second = jax.random.split(key)
        shape = extent.astype(jnp.float32)
        scale = jnp.float32(1)
        if self.short_side:
            low, high = self.short_side
            scale = shape.min() / jax.random.uniform(first, (), minval=low, maxval=high + 1e-6)
        # A frame that is smaller than the crop is enlarged; Data.check wants that said.
        scale = jnp.minimum(scale, (shape / jnp.array(size)).min())
        room = jnp.maximum(shape - jnp.array(size) * scale, 0.0)
        share = jax.random.uniform(second, (2,)) if self.crop == "random" else jnp.full(2, 0.5)
        start = share * room
        # At the frames' own scale a crop that falls between pixels would blur them.
        return (start if self.short_side else jnp.round(start)), scale

    def _jitter(self, key: Array, clip: Array) -> Array:
        """Brightness, contrast, saturation and hue, in this order."""
        used, *keys = jax.random.split(key, 5)
        factor = lambda k, x: jax.random.uniform(k, (), minval=max(0.0, 1 - x), maxval=1 + x)
        out = colour.blend(clip, colour.without_light(clip), factor(keys[0], self.brightness))
        out = colour.blend(out, colour.without_contrast(out), factor(keys[1], self.contrast))
        out = colour.blend(out, colour.grey(out), factor(keys[2], self.saturation))
        if self.hue:
            turn = jax.random.uniform(keys[3], (), minval=-self.hue, maxval=self.hue)
            out = colour.turn_hue(out, turn)
        return jnp.where(jax.random.bernoulli(used, self.colour_share), out, clip)


def erase(key: Array, clip: Array, probability: float) -> Array:
    """A box of 2 to 33 % of the frame, the same in all frames, of noise; 1708.04896, section 3."""
    _, height, width, _ = clip.shape
    used, area, ratio, place, noise = jax.random.split(key, 5)
    share = jax.random.uniform(area, (), minval=0.02, maxval=0.33) * height * width
    aspect = jnp.exp(jax.random.uniform(ratio, (), minval=jnp.log(0.3), maxval=jnp.log(1 / 0.3)))
    box = jnp.minimum(
        jnp.round(jnp.stack([jnp.sqrt(share * aspect), jnp.sqrt(share / aspect)])),
        jnp.array([height, width]),
    )
    inside = in_box(place, box, height, width) & jax.random.bernoulli(used, probability)
    pixels = jax.random.uniform(noise, clip.shape[1:], maxval=255.0)
    return jnp.where(inside[..., None], pixels, clip)


def in_box(key: Array, box: Array, height: int, width: int) -> Array:
    """Which pixels [H, W] are in a box of whole (height, width) at a random place in the frame."""
    room = jnp.array([height, width]) - box
    y, x = jnp.floor(jax.random.uniform(key, (2,)) * (room + 1))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    return (rows >= y) & (rows < y + box[0]) & (columns >= x) & (columns < x + box[1])


def mix(
    clips: Array, batch: dict[str, Array], keys: Array, *, mixup: float, cutmix: float
) -> tuple[Array, dict[str, Array]]:
    """Each clip mixed with its neighbour in the batch: 0 with 1, 2 with 3, and so on."""
    count, _, height, width, _ = clips.shape
    if count % 2:
        raise ValueError(
            f"mixup and cutmix pair clips: {count} on a device is odd; change data.batch_size"
        )
    swap = lambda x: x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    first = keys[jnp.arange(count) // 2 * 2]
    drawn = jax.vmap(lambda key: jax.random.fold_in(key, 6))(first)  # as none of a clip's own

    def one(key, clip, other):
        which, share_key, place = jax.random.split(key, 3)
        cut = jax.random.bernoulli(which, 0.5) if mixup and cutmix else bool(cutmix)
        blended = jax.random.beta(share_key, mixup or 1.0, mixup or 1.0)
        kept = jax.random.beta(share_key, cutmix or 1.0, cutmix or 1.0)
        box = jnp.round(jnp.sqrt(1 - kept) * jnp.array([height, width]))
        inside = in_box(place, box, height, width)
        share = jnp.where(cut, 1 - inside.mean(), blended)
        pasted = jnp.where(inside[..., None], other, clip)
        mixed = jnp.where(cut, pasted, share * clip + (1 - share) * other)
        return mixed, share

    mixed, share = jax.vmap(one)(drawn, clips, swap(clips))
    # Padding has nothing to give.
    whole = (batch["mask"] * swap(batch["mask"])) > 0
    share = jnp.where(whole, share, 1.0)
    mixed = jnp.where(whole[:, None, None, None, None], mixed, clips)
    return mixed, {**batch, "other_labels": swap(batch["labels"]), "share": share}

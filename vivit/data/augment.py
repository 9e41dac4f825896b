"""Random changes of training clips, on the device, inside the jitted step.

Every draw is made for a whole clip, from the seed and the clip's index in the order of training
alone: the same on any number of devices, under jit and pmap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vivit.data import colour
from vivit.data.colour import Frames
from vivit.data.geometry import needs_no_resize, resample, to_uint8
from vivit.data.settings import AugmentSettings
from vivit.data.split import Split
from vivit.ramps import Factors, Strength, is_off
from vivit.registry import OptionRegistry, Options

Batch = dict[str, Array]


@dataclass(frozen=True)
class Augmentation:
    """A random change of one clip.

    apply: (key, clip, **options) -> clip, of float32 frames [F, H, W, 3] in 0 .. 255.
    """

    apply: Callable[..., Frames]
    options: Options = Options()


# An entry of a user's module runs with augment.extra=("name(option)",).
AUGMENTATIONS: OptionRegistry[Augmentation] = OptionRegistry("augmentation")


def make_augmentation(
    settings: AugmentSettings,
    split: Split,
    size: tuple[int, int],
    *,
    canvas: tuple[int, int] | None = None,
) -> Callable[[Batch, Array, Factors], Batch]:
    """Returns (batch on the device, key, factors) -> batch with uint8 clips of `size`.

    factors: of the strengths that `train.ramps` changes; one that it lacks is as `settings` say.

    Mixed clips have the labels of the other clip, `other_labels`, and the weight of the first
    label, `label_weight`. canvas: that of the batches, if it is not the one that holds every frame.

    Raises ValueError where the split can't be augmented so.
    """
    _check(settings, split, size)
    needs_crop = bool(settings.short_side) or not needs_no_resize(
        canvas or split.largest, split.smallest, size
    )

    def one(steps, key: Array, clip: Array, extent: Array) -> tuple[Array, Array]:
        keys = jax.random.split(key, 6)
        flip = jax.random.bernoulli(keys[1], settings.flip)
        if needs_crop:
            start, scale = _box(settings, keys[0], extent, size)
            clip = resample(clip, extent, start=start, scale=scale, size=size, flip=flip)
        else:
            clip = jnp.where(flip, clip[:, :, ::-1], clip).astype(jnp.float32)
        for number, step in steps.items():
            clip = step(keys[number] if number < 6 else jax.random.fold_in(key, number), clip)
        return clip, flip

    def augment(batch: Batch, key: Array, factors: Factors) -> Batch:
        strength = lambda name: getattr(settings, name) * factors.get(name, 1)
        steps = _steps(settings, strength)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["indices"])
        clips, flipped = jax.vmap(partial(one, steps))(keys, batch["clips"], batch["extents"])
        labels = batch["labels"]
        mirrored = split.task.mirrored(labels, split.flip_labels)
        flipped = flipped.reshape(-1, *[1] * (labels.ndim - 1))
        labels = jnp.where(flipped, mirrored, labels).astype(labels.dtype)
        batch = {**batch, "labels": labels}
        if settings.mixup or settings.cutmix:
            # The draws of a pair are its first clip's, so that both agree.
            alphas = {"mixup": strength("mixup"), "cutmix": strength("cutmix")}
            clips, batch = mix(clips, batch, keys, **alphas)
        return {**batch, "clips": to_uint8(clips)}

    return augment


def _check(settings: AugmentSettings, split: Split, size: tuple[int, int]) -> None:
    if settings.short_side and settings.short_side[0] < max(size):
        raise ValueError(
            f"augment.short_side={tuple(settings.short_side)} is smaller than the model's "
            f"{size[0]} x {size[1]}"
        )
    flips = [to for of_head in split.flip_labels for to in of_head]
    stuck = [name for name, to in zip(split.class_names, flips, strict=True) if to < 0]
    if settings.flip and stuck:
        raise ValueError(
            f"augment.flip={settings.flip}: {', '.join(stuck[:5])} tell left from right, and the "
            "classes have no mirror image of them; set flip=0, or name one in the manifest's "
            ".classes.json"
        )
    if (settings.mixup or settings.cutmix) and not split.task.mixes:
        raise ValueError(
            f"augment.mixup={settings.mixup:g} and cutmix={settings.cutmix:g}: the loss of task "
            f"{type(split.task).__name__} is not linear in its targets, so clips cannot be mixed; "
            "set both to 0"
        )


def _steps(
    settings: AugmentSettings, strength: Callable[[str], Strength]
) -> dict[int, Callable[[Array, Array], Array]]:
    """Returns the steps after the crop, in their order, by the number of the key that each uses.

    Keys 0 and 1 are those of the crop and the flip, and 6 is that of mixup and cutmix.
    """
    s = settings
    jitter = {name: getattr(s, name) for name in ("brightness", "contrast", "saturation", "hue")}
    probability = lambda name: {"probability": strength(name)}
    switches = (
        (s.operations, "randaugment", {"count": s.operations, "magnitude": strength("magnitude")}),
        (any(jitter.values()), "colour_jitter", jitter | probability("colour_jitter")),
        (s.grey, "grey", probability("grey")),
        (s.erase, "erase", probability("erase")),
    )
    steps = {
        number: partial(AUGMENTATIONS[name].apply, **options)
        for number, (on, name, options) in enumerate(switches, start=2)
        if on
    }
    for number, name in enumerate(settings.extra, start=7):
        steps[number] = partial(AUGMENTATIONS[name].apply, **AUGMENTATIONS[name].options)
    return steps


def _box(
    settings: AugmentSettings, key: Array, extent: Array, size: tuple[int, int]
) -> tuple[Array, Array]:
    """Returns upper left corner and scale of the crop, in pixels of the frame."""
    first, second = jax.random.split(key)
    shape = extent.astype(jnp.float32)
    scale = jnp.float32(1)
    if settings.short_side:
        low, high = settings.short_side
        scale = shape.min() / jax.random.uniform(first, (), minval=low, maxval=high + 1e-6)
    # A frame that is smaller than the crop is enlarged; training requires data.enlarge for that.
    scale = jnp.minimum(scale, (shape / jnp.array(size)).min())
    room = jnp.maximum(shape - jnp.array(size) * scale, 0.0)
    random = settings.crop == "random"
    start = (jax.random.uniform(second, (2,)) if random else jnp.full(2, 0.5)) * room
    # At the frames' scale a crop that falls between pixels would blur them.
    return (start if settings.short_side else jnp.round(start)), scale


def _random_operations(key: Array, clip: Frames, *, count: int, magnitude: Strength) -> Frames:
    from vivit.data.randaugment import randaugment  # most configs do without its operations

    return randaugment(clip, key, count=count, magnitude=magnitude / 10)


def colour_jitter(
    key: Array,
    clip: Frames,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    probability: Strength,
) -> Frames:
    """Returns the clip with other brightness, contrast, saturation and hue, in this order."""
    used, *keys = jax.random.split(key, 5)
    factor = lambda k, x: jax.random.uniform(k, (), minval=max(0.0, 1 - x), maxval=1 + x)
    out = colour.blend(clip, colour.black(clip), factor(keys[0], brightness))
    out = colour.blend(out, colour.mean_grey(out), factor(keys[1], contrast))
    out = colour.blend(out, colour.grey(out), factor(keys[2], saturation))
    if hue:
        out = colour.adjust_hue(out, jax.random.uniform(keys[3], (), minval=-hue, maxval=hue))
    return jnp.where(jax.random.bernoulli(used, probability), out, clip)


def grey(key: Array, clip: Frames, *, probability: Strength) -> Frames:
    """Returns the clip in grey, with this probability."""
    return jnp.where(jax.random.bernoulli(key, probability), colour.grey(clip), clip)


def erase(key: Array, clip: Frames, *, probability: Strength) -> Frames:
    """Returns the clip with noise in a box of 2 to 33 % of the frame; 1708.04896, section 3."""
    _, height, width, _ = clip.shape
    used, area, ratio, place, noise = jax.random.split(key, 5)
    pixels = jax.random.uniform(area, (), minval=0.02, maxval=0.33) * height * width
    aspect = jnp.exp(jax.random.uniform(ratio, (), minval=jnp.log(0.3), maxval=jnp.log(1 / 0.3)))
    box = jnp.minimum(
        jnp.round(jnp.stack([jnp.sqrt(pixels * aspect), jnp.sqrt(pixels / aspect)])),
        jnp.array([height, width]),
    )
    inside = in_box(place, box, height, width) & jax.random.bernoulli(used, probability)
    values = jax.random.uniform(noise, clip.shape[1:], maxval=255.0)
    return jnp.where(inside[..., None], values, clip)


def _options(**options: int | float) -> Options:
    return Options(options)


AUGMENTATIONS.add("randaugment", Augmentation(_random_operations, _options(count=2, magnitude=9.0)))
AUGMENTATIONS.add(
    "colour_jitter",
    Augmentation(
        colour_jitter,
        _options(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, probability=1.0),
    ),
)
AUGMENTATIONS.add("grey", Augmentation(grey, _options(probability=0.1)))
AUGMENTATIONS.add("erase", Augmentation(erase, _options(probability=0.25)))


def in_box(key: Array, box: Array, height: int, width: int) -> Array:
    """Returns which pixels [H, W] are in a box of whole (height, width) at a random place."""
    room = jnp.array([height, width]) - box
    y, x = jnp.floor(jax.random.uniform(key, (2,)) * (room + 1))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    return (rows >= y) & (rows < y + box[0]) & (columns >= x) & (columns < x + box[1])


def _share_kept(key: Array, alpha: Strength) -> Array:
    """Returns a draw of Beta(alpha, alpha), or 1 where alpha is 0."""
    positive = jnp.maximum(jnp.float32(alpha), 1e-3)
    return jnp.where(jnp.asarray(alpha) > 0, jax.random.beta(key, positive, positive), 1.0)


def mix(
    clips: Array, batch: Batch, keys: Array, *, mixup: Strength, cutmix: Strength
) -> tuple[Array, Batch]:
    """Returns each clip mixed with its neighbour in the batch: 0 with 1, 2 with 3, and so on."""
    count, _, height, width, _ = clips.shape
    if count % 2:
        raise ValueError(
            f"mixup and cutmix pair clips: {count} on a device is odd; change data.batch_size"
        )
    swap = lambda x: x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    first = keys[jnp.arange(count) // 2 * 2]
    drawn = jax.vmap(lambda key: jax.random.fold_in(key, 6))(first)

    def one(key, clip, other):
        which, weight_key, place = jax.random.split(key, 3)
        cut = not is_off(cutmix)
        if cut and not is_off(mixup):
            cut = jax.random.bernoulli(which, 0.5)
        blended, kept = _share_kept(weight_key, mixup), _share_kept(weight_key, cutmix)
        box = jnp.round(jnp.sqrt(1 - kept) * jnp.array([height, width]))
        inside = in_box(place, box, height, width)
        weight = jnp.where(cut, 1 - inside.mean(), blended)
        pasted = jnp.where(inside[..., None], other, clip)
        return jnp.where(cut, pasted, weight * clip + (1 - weight) * other), weight

    mixed, weight = jax.vmap(one)(drawn, clips, swap(clips))
    # Do not mix with padded examples.
    both = (batch["valid"] * swap(batch["valid"])) > 0
    weight = jnp.where(both, weight, 1.0)
    mixed = jnp.where(both[:, None, None, None, None], mixed, clips)
    return mixed, {**batch, "other_labels": swap(batch["labels"]), "label_weight": weight}

"""Augmentation against NumPy and Pillow, and that a draw is a clip's alone."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vivit.data import colour, randaugment
from vivit.data.augment import AUGMENTATIONS, Augmentation, erase, make_augmentation, mix
from vivit.data.classes import Classes
from vivit.data.randaugment import FILL, OPERATIONS, Operation
from vivit.data.settings import AugmentSettings
from vivit.data.split import Split
from vivit.data.whole_clips import WholeClips
from vivit.registry import Options
from vivit.tasks import Classify

SHAPE = (3, 32, 40, 3)
RANDAUGMENT = dict(OPERATIONS._items)


@pytest.fixture(scope="module")
def clip():
    """Three frames of smooth colour with noise, none using all levels."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(32)[:, None, None] / 5 + np.arange(3) + np.arange(40)[:, None] / 7)
    frames = 110 + 60 * waves[None] + rng.normal(0, 12, SHAPE)
    return np.clip(frames, 20, 240).astype(np.uint8)


def split_of(largest=(40, 60), smallest=40, names=("a", "b"), mirrored=(0, 1)):
    flip = {a: None if i < 0 else names[i] for a, i in zip(names, mirrored, strict=True)}
    return Split(
        WholeClips((), (1, 1, 1, 3)),
        {"label": Classes(names, flip)},
        largest,
        smallest,
        "train",
        "x",
        "",
        "",
        task=Classify({"label": len(names)}),
    )


# --- each operation of RandAugment beside Pillow's ---


def affine(matrix):
    """Pillow's transform by our map of pixel centres (y, x); Pillow counts from corners, (x, y)."""
    (a, b, c), (d, e, f) = np.asarray(matrix, np.float64)
    data = (e, d, f - 0.5 * (d + e) + 0.5, b, a, c - 0.5 * (a + b) + 0.5)

    def twin(image):
        fill = (int(FILL),) * 3
        return image.transform(
            image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=fill
        )

    return twin


def pillow_posterize(argument):
    return lambda image: ImageOps.posterize(image, int(argument))


TWINS = {
    "brightness": lambda x: lambda image: ImageEnhance.Brightness(image).enhance(x),
    "colour": lambda x: lambda image: ImageEnhance.Color(image).enhance(x),
    "contrast": lambda x: lambda image: ImageEnhance.Contrast(image).enhance(x),
    "sharpness": lambda x: lambda image: ImageEnhance.Sharpness(image).enhance(x),
    "posterize": pillow_posterize,
    "solarize": lambda x: lambda image: ImageOps.solarize(image, int(x)),
    "invert": lambda x: ImageOps.invert,
    "autocontrast": lambda x: ImageOps.autocontrast,
    "equalize": lambda x: ImageOps.equalize,
    "identity": lambda x: lambda image: image,
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("magnitude", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(clip, name, magnitude, sign):
    operation = OPERATIONS[name]
    argument = operation.strength(jnp.float32(magnitude), jnp.float32(sign))
    ours = randaugment.apply(
        name, jnp.asarray(clip, jnp.float32), jnp.float32(magnitude), jnp.float32(sign)
    )
    ours = np.clip(np.round(np.asarray(ours)), 0, 255).astype(int)
    if operation.matrix is not None:
        twin = affine(operation.matrix(argument, *SHAPE[1:3]))
    else:
        twin = TWINS[name](float(argument))
    theirs = np.stack([np.asarray(twin(Image.fromarray(frame))) for frame in clip]).astype(int)
    difference = np.abs(ours - theirs)
    if operation.matrix is not None:
        # Pillow fills pixels whose centre comes from outside; we fade over the last half pixel.
        inside = np.stack([_covered(twin, 2)] * len(clip))
        assert inside.mean() > 0.3
        assert difference[inside].max() <= 2
    else:
        assert difference.max() <= 1


def _covered(twin, margin):
    """The pixels that come from well inside the frame."""
    mask = np.zeros((*SHAPE[1:3], 3), np.uint8)
    mask[margin:-margin, margin:-margin] = 255
    image = Image.fromarray(mask).filter(ImageFilter.MinFilter(3))
    moved = np.asarray(twin(image))
    return moved == 255


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brightness", lambda x: 0.1 * x),
        ("solarize", lambda x: 255 - x),
        ("posterize", lambda x: x // 128 * 128),
    ],
)
def test_beyond_the_papers_magnitude_operations_end_at_their_last_sense(clip, name, expected):
    whole = jnp.asarray(clip, jnp.float32)
    out = randaugment.apply(name, whole, jnp.float32(2.5), jnp.float32(-1.0))
    np.testing.assert_allclose(out, expected(clip.astype(np.float32)), atol=1e-3)


def test_geometric_operations_move_where_they_say(clip):
    frame = jnp.zeros((1, 21, 21, 3)).at[:, 10, 15].set(255.0)  # right of the middle
    turned = randaugment.apply("rotate", frame, jnp.float32(1.0), jnp.float32(1.0))
    y, x = np.unravel_index(
        np.asarray(turned[0, ..., 0] * (turned[0, ..., 0] > 129)).argmax(), (21, 21)
    )
    assert y < 10 and x < 15  # anticlockwise: up  # noqa: PT018
    right = randaugment.apply("translate_x", frame, jnp.float32(0.2), jnp.float32(-1.0))
    assert np.asarray(right[0, 10, 17, 0]) > 129  # moved by about 2 pixels


def test_hue_is_that_of_colorsys(clip):
    turned = np.asarray(colour.adjust_hue(jnp.asarray(clip, jnp.float32), jnp.float32(0.2)))
    for y, x in ((0, 0), (5, 9), (31, 39), (17, 20)):
        h, s, v = colorsys.rgb_to_hsv(*(clip[1, y, x] / 255))
        expected = np.array(colorsys.hsv_to_rgb((h + 0.2) % 1, s, v)) * 255
        np.testing.assert_allclose(turned[1, y, x], expected, atol=0.01)
    grey = jnp.full((1, 2, 2, 3), 77.0)
    np.testing.assert_allclose(colour.adjust_hue(grey, jnp.float32(0.3)), grey)


def test_grey_is_pillows_luma(clip):
    ours = np.asarray(colour.grey(jnp.asarray(clip, jnp.float32)))[0]
    theirs = np.asarray(Image.fromarray(clip[0]).convert("L"))
    assert np.abs(ours[..., 0] - theirs).max() <= 1


# --- the whole ---

EVERYTHING = {
    "short_side": (34, 38),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grey": 0.3,
    "operations": 2,
    "erase": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
}


def batch_of(count, seed=0, extent=(40, 60)):
    rng = np.random.default_rng(seed)
    return {
        "clips": jnp.asarray(rng.integers(0, 256, (count, 2, *extent, 3), np.uint8)),
        "extents": jnp.tile(jnp.array(extent, jnp.int32), (count, 1)),
        "labels": jnp.asarray(rng.integers(0, 2, count), jnp.int32),
        "valid": jnp.ones(count),
        "indices": jnp.arange(count, dtype=jnp.uint32),
    }


def run(config, batch, split=None, size=(32, 32), key=7, factors=None):
    settings = AugmentSettings(**config)
    augment = make_augmentation(settings, split_of() if split is None else split, size)
    return jax.jit(augment)(batch, jax.random.key(key), factors or {})


def test_the_result_is_as_the_model_takes_it():
    out = run(EVERYTHING, batch_of(4))
    assert out["clips"].shape == (4, 2, 32, 32, 3)
    assert out["clips"].dtype == jnp.uint8
    assert ((out["label_weight"] >= 0) & (out["label_weight"] <= 1)).all()


def test_a_draw_depends_on_the_position_alone():
    """The same example in other company, in another place of the batch, or on another device."""
    config = {k: v for k, v in EVERYTHING.items() if k not in ("mixup", "cutmix")}
    batch = batch_of(6)
    whole = run(config, batch)["clips"]
    some = {k: v[jnp.array([4, 1])] for k, v in batch.items()}
    np.testing.assert_array_equal(run(config, some)["clips"], whole[jnp.array([4, 1])])
    assert not (run(config, batch, key=8)["clips"] == whole).all()


@pytest.mark.parametrize(
    "name", [k for k in EVERYTHING if k not in ("mixup", "cutmix", "short_side")]
)
def test_frames_of_a_clip_share_the_draw(name):
    """Equal frames stay equal; and each step, alone, changes something."""
    batch = batch_of(16)
    batch["clips"] = jnp.tile(batch["clips"][:, :1], (1, 2, 1, 1, 1))
    extra = {"hue": {"hue": 0.3}}.get(name, {name: EVERYTHING[name]})
    out = run({**extra, "crop": "centre"}, batch)["clips"]
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    plain = run({"crop": "centre"}, batch)["clips"]
    assert not (out == plain).all()


def test_crops_are_windows_of_the_frame():
    batch = batch_of(32)
    out = np.asarray(run({}, batch)["clips"])
    starts = set()
    for i in range(32):
        clip = np.asarray(batch["clips"][i, 0])
        found = [
            (y, x)
            for y in range(9)
            for x in range(29)
            if (clip[y : y + 32, x : x + 32] == out[i, 0]).all()
        ]
        assert len(found) == 1
        starts.add(found[0])
    assert len(starts) > 20


def test_flips_take_their_labels_along():
    batch = batch_of(64)
    split = split_of(names=("left", "right"), mirrored=(1, 0))
    out = run({"flip": 0.5, "crop": "centre"}, batch, split)
    kept = run({"crop": "centre"}, batch, split)["clips"]
    flipped = (out["clips"] == kept[:, :, :, ::-1]).all(axis=(1, 2, 3, 4))
    assert 16 < int(flipped.sum()) < 48
    assert ((out["clips"] == kept).all(axis=(1, 2, 3, 4)) == ~flipped).all()
    np.testing.assert_array_equal(
        out["labels"], jnp.where(flipped, 1 - batch["labels"], batch["labels"])
    )
    split = split_of(names=("left", "sit"), mirrored=(-1, 1))
    with pytest.raises(ValueError, match="flip=0.5: left tell left from right.*set flip=0"):
        make_augmentation(AugmentSettings(flip=0.5), split, (32, 32))


def test_scale_jitter_scales_and_fits():
    for low, high in ((32, 32), (40, 40)):
        out = run({"short_side": (low, high), "crop": "centre"}, batch_of(2))["clips"]
        scale = 40 / low
        clip = np.asarray(batch_of(2)["clips"][0, 0])
        start = np.array([(40 - 32 * scale) / 2, (60 - 32 * scale) / 2])
        if low == 40:  # nothing is scaled
            y, x = start.astype(int)
            np.testing.assert_array_equal(out[0, 0], clip[y : y + 32, x : x + 32])
        else:
            box = (start[1], start[0], start[1] + 40, start[0] + 40)
            image = Image.fromarray(clip).resize((32, 32), Image.Resampling.BILINEAR, box=box)
            inner = np.abs(np.asarray(out[0, 0]).astype(int) - np.asarray(image))[2:-2, 2:-2]
            assert inner.max() <= 1


def test_a_small_frame_is_enlarged_to_the_crop():
    out = run({}, batch_of(2, extent=(20, 24)), split_of((20, 24), 20))
    assert out["clips"].shape == (2, 2, 32, 32, 3)
    assert np.asarray(out["clips"]).std() > 20


def test_mixing_pairs_neighbours_and_their_labels():
    batch = batch_of(8, extent=(32, 32))
    clips = batch["clips"].astype(jnp.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    for alpha in ({"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        mixed, out = mix(clips, batch, keys, **alpha)
        assert (
            out["other_labels"].tolist()
            == batch["labels"].reshape(4, 2)[:, ::-1].reshape(-1).tolist()
        )
        np.testing.assert_allclose(out["label_weight"][::2], out["label_weight"][1::2], atol=1e-6)
        other = clips.reshape(4, 2, *clips.shape[1:])[:, ::-1].reshape(clips.shape)
        share = out["label_weight"][:, None, None, None, None]
        if alpha["mixup"]:
            np.testing.assert_allclose(mixed, share * clips + (1 - share) * other, atol=1e-3)
        else:
            own = (mixed == clips).all(axis=(1, 4))  # [B, H, W]
            pasted = (mixed == other).all(axis=(1, 4))
            assert (own | pasted).all()
            np.testing.assert_allclose(own.mean(axis=(1, 2)), out["label_weight"], atol=0.02)
            assert own[0].sum(axis=0).std() > 0  # a box, no rows
    padded = {**batch, "valid": jnp.array([1, 0, 1, 1, 1, 1, 1, 1.0])}
    mixed, out = mix(clips, padded, keys, mixup=1.0, cutmix=0.0)
    np.testing.assert_array_equal(mixed[0], clips[0])
    assert out["label_weight"][0] == 1.0
    with pytest.raises(ValueError, match="3 on a device is odd"):
        mix(clips[:3], {k: v[:3] for k, v in batch.items()}, keys[:3], mixup=1.0, cutmix=0.0)


def test_erasing_covers_one_box_of_every_frame():
    clip = jnp.zeros((2, 60, 80, 3))
    covered = []
    for i in range(20):
        out = np.asarray(erase(jax.random.key(i), clip, probability=1.0))
        np.testing.assert_array_equal(out[0], out[1])
        inside = out[0].any(axis=-1)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
        covered.append(inside.mean())
    assert 0.01 < min(covered) < max(covered) < 0.36
    assert not np.asarray(erase(jax.random.key(0), clip, probability=0.0)).any()


def test_without_any_step_nothing_changes():
    batch = batch_of(4, extent=(32, 32))
    out = run({}, batch, split_of((32, 32), 32))
    np.testing.assert_array_equal(out["clips"], batch["clips"])
    np.testing.assert_array_equal(out["labels"], batch["labels"])


def test_mistakes_are_named_all_at_once():
    with pytest.raises(ValueError, match=r"flip=1.5 is not a probability; hue=0.9 .*; crop='left'"):
        AugmentSettings(flip=1.5, hue=0.9, crop="left")
    with pytest.raises(ValueError, match=r"short_side=\(20, 40\) is smaller than the model's"):
        make_augmentation(AugmentSettings(short_side=(20, 40)), split_of(), (32, 32))


def test_a_registered_augmentation_is_what_runs_last(monkeypatch):
    """With its options, on every clip, after the crop, and with draws of its clip alone."""
    monkeypatch.setattr(AUGMENTATIONS, "_items", {**AUGMENTATIONS._items})
    shift = lambda key, clip, *, by: clip * 0 + jnp.round(by * jax.random.uniform(key) + 1)
    AUGMENTATIONS.add("shift", Augmentation(shift, Options(by=50.0)))
    out = np.asarray(run({"extra": ("shift(100.0)",)}, batch_of(4))["clips"])
    values = out.reshape(4, -1)
    assert (values == values[:, :1]).all()
    assert len(set(values[:, 0])) > 1
    assert values.max() > 51
    other = np.asarray(run({"extra": ("erase(1.0)", "shift(100.0)")}, batch_of(4))["clips"])
    assert not (other == out).all()  # the second step has a key of its own
    with pytest.raises(ValueError, match="unknown augmentation 'shuffle'"):
        run({"extra": ("shuffle",)}, batch_of(4))


def test_a_registered_operation_is_drawn(clip, monkeypatch):
    monkeypatch.setattr(OPERATIONS, "_items", {})
    for name in ("rotate", "shear_x"):
        OPERATIONS.add(name, RANDAUGMENT[name])
    OPERATIONS.add("black", Operation(lambda m, _: m, apply=lambda x, _: jnp.zeros_like(x)))
    clips = jnp.asarray(clip, jnp.float32)
    draw = jax.jit(lambda key: randaugment.randaugment(clips, key, count=1, magnitude=0.0))
    drawn = [not draw(key).any() for key in jax.random.split(jax.random.key(0), 30)]
    assert 3 < sum(drawn) < 20


STRONG = {
    "operations": 2, "magnitude": 12.0, "brightness": 0.4, "colour_jitter": 0.8, "grey": 0.6,
    "erase": 0.8, "mixup": 0.8, "cutmix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_strengths_at_a_factor_are_those_of_settings_with_these_strengths(factor):
    batch = batch_of(8)
    names = AugmentSettings(**STRONG).strengths
    ramped = run(STRONG, batch, factors=dict.fromkeys(names, jnp.float32(factor)))
    expected = run(STRONG | {name: factor * STRONG[name] for name in names}, batch)
    if not factor:
        expected["label_weight"] = jnp.ones(8)  # nothing was mixed
    # XLA may fold a strength that is a constant, and a pixel then be rounded to its other side.
    difference = np.abs(ramped["clips"].astype(int) - expected["clips"].astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 1e-3
    np.testing.assert_allclose(ramped["label_weight"], expected["label_weight"], rtol=1e-6)

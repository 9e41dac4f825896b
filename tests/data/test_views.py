import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vivit.data.classes import Classes
from vivit.data.geometry import resample, to_uint8, view
from vivit.data.settings import ViewsSettings
from vivit.data.split import Split
from vivit.data.views import AVERAGES, make_views
from vivit.data.whole_clips import WholeClips
from vivit.tasks import Classify


def noise(height, width, frames=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def split_of(largest, smallest):
    return Split(
        WholeClips((), (1, 1, 1, 3)),
        {"label": Classes(("a", "b"))},
        largest,
        smallest,
        "test",
        "x",
        "",
        "",
        task=Classify({"label": 2}),
    )


def pillow(frame, box, size):
    image = Image.fromarray(frame)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize(
    ("shape", "size"), [((90, 120), (45, 60)), ((64, 48), (40, 30)), ((20, 30), (40, 60))]
)
def test_resampling_whole_frames_is_pillows(shape, size):
    clip = noise(*shape)
    scale = jnp.float32(shape[0] / size[0])
    ours = resample(jnp.asarray(clip), jnp.array(shape), start=jnp.zeros(2), scale=scale, size=size)
    theirs = pillow(clip[0], (0, 0, shape[1], shape[0]), size)
    assert np.abs(np.asarray(to_uint8(ours[0])).astype(int) - theirs).max() <= 1


def test_nothing_beyond_the_extent_is_seen():
    """A frame on a larger canvas is resampled as if the canvas ended with it."""
    clip = noise(30, 40)
    canvas = np.full((2, 50, 64, 3), 255, np.uint8)
    canvas[:, :30, :40] = clip
    by = {"start": jnp.array([3.0, 5.5]), "scale": jnp.float32(1.2), "size": (20, 25)}
    alone = resample(jnp.asarray(clip), jnp.array([30, 40]), **by)
    placed = resample(jnp.asarray(canvas), jnp.array([30, 40]), **by)
    np.testing.assert_allclose(alone, placed, atol=1e-3)


def test_at_its_own_size_a_frame_is_itself():
    clip = noise(24, 32)
    same = resample(
        jnp.asarray(clip), jnp.array([24, 32]), start=jnp.zeros(2), scale=jnp.float32(1),
        size=(24, 32),
    )  # fmt: skip
    np.testing.assert_array_equal(to_uint8(same), clip)
    flipped = resample(
        jnp.asarray(clip), jnp.array([24, 32]), start=jnp.zeros(2), scale=jnp.float32(1),
        size=(24, 32), flip=True,
    )  # fmt: skip
    np.testing.assert_array_equal(to_uint8(flipped), clip[:, :, ::-1])


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16)])
def test_crops_are_left_centre_right_or_top_centre_bottom(height, width):
    clip = noise(height, width)
    crops = [
        np.asarray(
            view(
                jnp.asarray(clip),
                jnp.array([height, width]),
                place=p,
                short_side=16,
                size=(16, 16),
            )
        )
        for p in (0.0, 0.5, 1.0)
    ]
    starts = (0, 12, 24)
    for crop, start in zip(crops, starts, strict=True):
        inside = slice(start, start + 16)
        expected = clip[:, :, inside] if width > height else clip[:, inside]
        np.testing.assert_array_equal(crop, expected)
    assert not (crops[0] == crops[1]).all()


def test_the_paper_crops_224_of_256():
    clip = noise(256, 340, frames=1)
    crop = view(
        jnp.asarray(clip), jnp.array([256, 340]), place=1.0, short_side=256, size=(224, 224)
    )
    np.testing.assert_array_equal(crop, clip[:, 16:240, 116:340])


def model(clips):
    """Logits that depend on every pixel: [B, 2]."""
    x = clips.astype(jnp.float32) / 255
    weights = jnp.linspace(-1, 1, x[0].size).reshape(x[0].shape)
    return jnp.stack([(x * weights).sum((1, 2, 3, 4)), x.mean((1, 2, 3, 4))], axis=-1)


@pytest.mark.parametrize("average", AVERAGES)
def test_equal_views_are_one_view(average):
    clips = jnp.asarray(np.stack([noise(16, 16, seed=s) for s in range(3)]))[:, None]
    extents = jnp.full((3, 2), 16)
    split = split_of((16, 40), 16)
    one = make_views(ViewsSettings(), split, (16, 16))(model, clips, extents)
    many = make_views(ViewsSettings(4, 3, average=average), split, (16, 16))
    all_equal = many(model, jnp.tile(clips, (1, 4, 1, 1, 1, 1)), extents)
    if average == "logits":
        np.testing.assert_allclose(all_equal, one, rtol=1e-5)
    else:
        np.testing.assert_allclose(
            jax.nn.softmax(all_equal), jax.nn.softmax(one), rtol=1e-5, atol=1e-7
        )


def test_views_are_the_mean_of_their_crops_and_clips():
    clips = jnp.asarray(np.stack([np.stack([noise(16, 40, seed=s), noise(16, 40, seed=9 - s)])
                                  for s in range(3)]))  # fmt: skip
    extents = jnp.tile(jnp.array([16, 40]), (3, 1))
    predict_views = make_views(ViewsSettings(2, 3), split_of((16, 40), 16), (16, 16))
    expected = np.mean(
        [model(clips[:, v, :, :, x : x + 16]) for v in range(2) for x in (0, 12, 24)], axis=0
    )
    np.testing.assert_allclose(predict_views(model, clips, extents), expected, rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="spatial=2 .crops. must be 1 or 3"):
        ViewsSettings(spatial=2)
    with pytest.raises(ValueError, match="short_side=10 is smaller than the crop"):
        make_views(ViewsSettings(short_side=10), split_of((16, 40), 16), (16, 16))
    with pytest.raises(ValueError, match="these views would be equal"):
        make_views(ViewsSettings(spatial=3), split_of((16, 16), 16), (16, 16))
    with pytest.raises(ValueError, match="unknown average of views 'vote'; known: logits"):
        make_views(ViewsSettings(average="vote"), split_of((16, 40), 16), (16, 16))


def test_a_registered_average_is_what_averages(monkeypatch):
    monkeypatch.setattr(AVERAGES, "_items", {**AVERAGES._items})
    AVERAGES.add("last", lambda logits, task: logits[-1])
    clips = jnp.asarray(noise(16, 40))[None, None]
    split, extents = split_of((16, 40), 16), jnp.array([[16, 40]])
    predict_views = make_views(ViewsSettings(1, 3, average="last"), split, (16, 16))
    expected = model(clips[:, 0, :, :, 24:])
    np.testing.assert_allclose(predict_views(model, clips, extents), expected, rtol=1e-5)

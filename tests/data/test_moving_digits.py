"""The data set measures time: one frame and an unordered bag of frames say nothing of the label."""

import numpy as np
import pytest

from tests.data.conftest import opened
from vivit.data import moving_digits as md
from vivit.data.whole_clips import mask_of
from vivit.dataprep.prepare import prepare_registered

OPPOSITES = (("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"), ("grow", "shrink"))


def trajectories(motion, count=3000, seed=0):
    """Places on the torus [count, F, 2] and sizes [count, F]."""
    rng = np.random.default_rng([seed, md.MOTIONS.index(motion)])
    tracks = np.stack([md.trajectory(motion, rng) for _ in range(count)])
    return tracks[..., :2] % md.SIDE, tracks[..., 2]


def same_distribution(a, b):
    """Two-sample Kolmogorov-Smirnov test at about 1 in 100,000."""
    grid = np.sort(np.concatenate([a, b]))
    gap = np.abs(
        np.searchsorted(np.sort(a), grid, "right") / len(a)
        - np.searchsorted(np.sort(b), grid, "right") / len(b)
    ).max()
    return gap < 2.4 * np.sqrt(1 / len(a) + 1 / len(b))


@pytest.mark.parametrize("motion", md.MOTIONS)
def test_one_frame_says_nothing_of_the_motion(motion):
    places, sizes = trajectories(motion)
    uniform = np.linspace(0, 1, 4001)
    for frame in (0, 7, 15):
        assert same_distribution(places[:, frame, 0] / md.SIDE, uniform)
        assert same_distribution(places[:, frame, 1] / md.SIDE, uniform)
        ring = np.log(sizes[:, frame] / md.SMALLEST) / np.log(md.LARGEST / md.SMALLEST)
        assert same_distribution(ring, uniform)


def steps(motion, seed=0):
    """From frame to frame: movements in x and y on the torus, growth on the ring."""
    places, sizes = trajectories(motion, seed=seed)
    moved = (np.diff(places, axis=1) + md.SIDE / 2) % md.SIDE - md.SIDE / 2
    ring = np.log(sizes / md.SMALLEST) / np.log(md.LARGEST / md.SMALLEST)
    grown = (np.diff(ring, axis=1) + 0.5) % 1 - 0.5
    return moved[..., 0], moved[..., 1], grown


@pytest.mark.parametrize(("one", "other"), OPPOSITES)
def test_a_clip_played_backwards_is_a_clip_of_the_opposite_label(one, other):
    for forward, backward in zip(steps(one), steps(other, seed=1), strict=True):
        for index in (0, 7, 14):
            assert same_distribution(forward[:, index], -backward[:, 14 - index])
    forward, backward = steps(one), steps(other)
    assert any(abs(f.sum(axis=1).mean() - b.sum(axis=1).mean()) > 0.1 for f, b in
               zip(forward, backward, strict=True))  # and forwards it is not  # fmt: skip


def test_directions_are_what_their_names_say():
    mean = {m: [s.sum(axis=1).mean() for s in steps(m)] for m in md.MOTIONS}
    assert mean["right"][0] > 10
    assert mean["left"][0] < -10
    assert mean["down"][1] > 10
    assert mean["up"][1] < -10
    assert mean["grow"][2] > 0.3
    assert mean["shrink"][2] < -0.3
    # Over the top of a circle, clockwise, as seen on the screen: up, to the right, down.
    x, y, _ = steps("clockwise")
    assert y[:, 0].mean() < 0 < y[:, 14].mean()
    assert x[:, 7].mean() > 0
    turned = x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]
    assert (turned > 0).all()  # y points down, so a positive turn is clockwise


def test_no_image_is_in_two_splits(data_root):
    _, digits = md.load_digits()
    chosen = md.split_images(digits)
    everything = np.concatenate(list(chosen.values()))
    assert len(np.unique(everything)) == len(everything) == 1797
    for split, images in chosen.items():
        records = opened("moving_digits", data_root, split=split, label="motion").reader.records
        assert {int(r["image"]) for r in records} <= set(images.tolist())


def test_published_sizes():
    assert md.SPLITS["train"] >= 8000
    assert md.SPLITS["validation"] >= 1000
    assert md.SPLITS["test"] >= 2000
    assert (md.FRAMES, md.SIDE, len(md.MOTIONS)) == (16, 32, 8)


def test_preparation_is_deterministic(data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(md, "SPLITS", {"train": 32, "validation": 16, "test": 21})
    prepare_registered("moving_digits", tmp_path)
    for split in md.SPLITS:
        digests = {
            opened("moving_digits", root, split=split, label="motion").digest
            for root in (data_root, tmp_path)
        }
        assert len(digests) == 1


def test_a_clip_shows_its_digit_in_motion():
    images, _ = md.load_digits()
    track = md.trajectory("right", np.random.default_rng(1))
    clip = md.render([(0, track)], np.arange(10), images, rng=np.random.default_rng(0))
    assert clip.shape == (16, 32, 32, 1)
    assert clip.dtype == np.uint8
    grows = md.trajectory("grow", np.random.default_rng(1))
    still = md.render([(0, grows)], np.arange(10), images, rng=np.random.default_rng(0))
    assert (clip != still).any()
    assert clip.max() > 200


@pytest.mark.parametrize("name", ["moving_digits", "long_digits"])
def test_the_mask_is_where_and_when_a_digit_moves(name, data_root, long_root):
    root = {"moving_digits": data_root, "long_digits": long_root}[name]
    split = opened(name, root, split="test", label="motion")
    assert split.masks is not None
    frames = np.arange(len(split.reader.open(0).times))
    for i in range(len(split)):
        clip, mask = (of.open(i).read(frames, None)[..., 0] for of in (split.reader, split.masks))
        assert set(np.unique(mask)) <= {0, 255}
        moves = (mask > 0).any(axis=(1, 2))
        assert moves.sum() == md.FRAMES
        assert np.diff(moves.astype(int), prepend=0, append=0).nonzero()[0].size == 2  # one stretch
        sides = np.sqrt((mask[moves] > 0).sum(axis=(1, 2)))
        assert sides.min() >= md.SMALLEST - 1.5
        assert sides.max() <= md.LARGEST + 1.5
        inside, outside = clip[mask > 0], clip[moves][mask[moves] == 0]
        assert np.quantile(inside, 0.9) > np.quantile(outside, 0.9) or name == "long_digits"
    few = split.at([3, 1])
    assert few.masks is not None
    np.testing.assert_array_equal(
        few.masks.open(1).read(frames, None), split.masks.open(1).read(frames, None)
    )


def test_what_trembles_is_outside_of_the_mask_and_changes_more(long_root):
    """Where the mask is not, frames of a long clip change too, so that change alone says little."""
    split = opened("long_digits", long_root, split="test", label="motion")
    frames, wrong = np.arange(md.LONG_FRAMES), 0
    for i in range(len(split)):
        clip = split.reader.open(i).read(frames, None)[..., 0].astype(float)
        moves = (split.masks.open(i).read(frames, None) > 0).any(axis=(1, 2, 3))
        change = np.abs(np.diff(clip, axis=0, prepend=clip[:1])).mean(axis=(1, 2))
        wrong += not moves[change.argmax()]
        assert np.quantile(change, 0.5) < 10 < change.max()
    assert wrong > 0


def test_a_square_on_a_torus():
    mask = mask_of(np.array([[0.0, 3.0, 3.0], [4.0, 4.0, 0.0]]), (8, 6))
    assert mask.shape == (2, 8, 6)
    assert not mask[1].any()
    rows, columns = np.nonzero(mask[0])
    assert set(rows.tolist()) == {2, 3, 4}
    assert set(columns.tolist()) == {5, 0, 1}


def test_clips_without_a_track_have_no_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(md, "SPLITS", {"train": 8, "validation": 8, "test": 8})
    prepare_registered("several_digits", tmp_path)
    assert opened("several_digits", tmp_path, split="test", label="digits").masks is None

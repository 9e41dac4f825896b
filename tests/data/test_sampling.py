import numpy as np
import pytest

from tests.data.conftest import load, load_views, opened
from vivit.data.sampling import (
    PAD_MODES,
    SAMPLINGS,
    PadMode,
    Sampling,
    check_sampling,
    clip_from,
    segments,
    starts_of_views,
)
from vivit.data.settings import SamplingSettings

EVEN = np.arange(10) / 10  # ten frames per second, one second
UNEVEN = np.array([0.0, 0.1, 0.2, 0.5, 0.9])


class Draw:
    """A generator that always draws the same value."""

    def __init__(self, value):
        self.value = value

    def random(self, size=None):
        return self.value if size is None else np.full(size, self.value)


def train(times, seconds, *, frames, rng, **fields):
    settings = SamplingSettings(**fields)
    return SAMPLINGS[settings.kind].train(settings, times, seconds, frames, rng)


def view(times, seconds, *, frames, views, **fields):
    settings = SamplingSettings(**fields)
    return SAMPLINGS[settings.kind].views(settings, times, seconds, frames, views)


def strided(start, *, frames, stride, count, pad_mode="wrap"):
    settings = SamplingSettings(stride_frames=stride, pad_mode=pad_mode)
    return clip_from(settings, np.arange(count) / 25, count / 25, frames, start).tolist()


def timed(times, start, *, frames, stride_seconds, seconds, pad_mode="wrap"):
    settings = SamplingSettings(stride_seconds=stride_seconds, pad_mode=pad_mode)
    return clip_from(settings, times, seconds, frames, start).tolist()


def test_every_second_frame():
    assert strided(3, frames=3, stride=2, count=10) == [3, 5, 7]


def test_a_short_video_begins_again_or_holds_its_last_frame():
    assert strided(2, frames=5, stride=1, count=4) == [2, 3, 0, 1, 2]
    assert strided(2, frames=5, stride=1, count=4, pad_mode="repeat") == [2, 3, 3, 3, 3]


def test_frames_by_time_where_the_rate_is_even():
    assert timed(EVEN, 0.2, frames=4, stride_seconds=0.2, seconds=1.0) == [2, 4, 6, 8]
    # The frames that are on screen between the beginnings of two.
    assert timed(EVEN, 0.25, frames=2, stride_seconds=0.2, seconds=1.0) == [2, 4]


def test_frames_by_time_where_it_is_not():
    assert timed(UNEVEN, 0.0, frames=5, stride_seconds=0.25, seconds=1.3) == [0, 2, 3, 3, 4]


def test_time_continues_at_the_beginning_or_stands_still():
    by = {"frames": 4, "stride_seconds": 0.4, "seconds": 1.0}
    assert timed(EVEN, 0.1, **by) == [1, 5, 9, 3]
    assert timed(EVEN, 0.1, pad_mode="repeat", **by) == [1, 5, 9, 9]


def test_times_in_whole_milliseconds_lose_no_frame():
    times = np.round(np.arange(24) / 12, 3)  # Matroska's
    assert timed(times, 0.0, frames=24, stride_seconds=1 / 12, seconds=2.0) == list(range(24))


def test_the_same_seconds_at_two_rates():
    slow, fast = np.arange(20) / 10, np.arange(60) / 30
    by = {"frames": 4, "stride_seconds": 0.3, "seconds": 2.0}
    fast, slow = (np.array(timed(times, 0.5, **by)) for times in (fast, slow))
    assert (fast / 30).tolist() == pytest.approx((slow / 10).tolist())


def test_segments():
    assert segments(10, frames=5).tolist() == [1, 3, 5, 7, 9]
    assert segments(10, frames=5, draws=np.zeros(5)).tolist() == [0, 2, 4, 6, 8]
    assert segments(10, frames=5, draws=np.full(5, 0.999)).tolist() == [1, 3, 5, 7, 9]
    assert segments(3, frames=6).tolist() == [0, 0, 1, 1, 2, 2]


def test_starts_of_views_are_evenly_spaced_from_end_to_end():
    assert starts_of_views(90, 4).tolist() == [0, 30, 60, 90]
    assert starts_of_views(90, 1).tolist() == [45]


def test_training_draws_any_start_and_no_other():
    by = {"frames": 4, "stride_frames": 2}
    starts = {int(train(EVEN, 1.0, rng=np.random.default_rng(i), **by)[0]) for i in range(200)}
    assert starts == {0, 1, 2, 3}  # 3, 5, 7, 9 is the last
    first, last = (train(EVEN, 1.0, rng=Draw(x), **by) for x in (0.0, 1 - 1e-9))
    assert (first.tolist(), last.tolist()) == ([0, 2, 4, 6], [3, 5, 7, 9])


def test_views_differ_and_span_the_video():
    views = view(EVEN, 1.0, frames=4, views=4, stride_frames=2)
    assert views.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [2, 4, 6, 8], [3, 5, 7, 9]]
    by_time = view(EVEN, 1.0, frames=4, views=2, stride_seconds=0.2)
    assert by_time.tolist() == [[0, 2, 4, 6], [2, 4, 6, 8]]
    parts = view(EVEN, 1.0, frames=2, views=2, kind="segments")
    assert parts.tolist() == [[1, 6], [3, 8]]
    assert view(EVEN, 1.0, frames=2, views=1, kind="segments").tolist() == [[2, 7]]


def test_a_video_shorter_than_a_clip_has_one_view():
    views = view(EVEN[:5], 0.5, frames=4, views=3, stride_frames=4, pad_mode="repeat")
    assert views.tolist() == [[0, 4, 4, 4]] * 3


def test_whole_clips():
    assert train(EVEN, 1.0, frames=4, rng=None, kind="all").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="temporal=2"):
        view(EVEN, 1.0, frames=4, views=2, kind="all")


@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("stride", [{"stride_frames": 3}, {"stride_seconds": 0.13}])
def test_frames_are_always_the_videos_own(kind, pad_mode, count, stride):
    by = {"frames": 8, "kind": kind, "pad_mode": pad_mode, **stride}
    times, seconds = np.arange(count) / 25, count / 25
    for i in range(20):
        frames = train(times, seconds, rng=np.random.default_rng(i), **by)
        assert frames.shape == (8,)
        assert (frames >= 0).all()
        assert (frames < count).all()
    views = view(times, seconds, views=1, **by)
    assert views.shape == (1, 8)
    assert ((views >= 0) & (views < count)).all()


def test_a_registered_pad_mode_is_what_pads(monkeypatch):
    monkeypatch.setattr(PAD_MODES, "_items", {**PAD_MODES._items})
    first = PadMode(lambda n, count: np.where(n < count, n, 0), lambda at, *_: np.zeros_like(at))
    PAD_MODES.add("first", first)
    assert strided(2, frames=5, stride=1, count=4, pad_mode="first") == [2, 3, 0, 0, 0]
    by = {"frames": 4, "stride_seconds": 0.4, "seconds": 1.0}
    assert timed(EVEN, 0.1, pad_mode="first", **by) == [1, 5, 9, 0]


def test_a_registered_sampling_is_what_samples(monkeypatch, data_root):
    monkeypatch.setattr(SAMPLINGS, "_items", {**SAMPLINGS._items})
    last = lambda settings, times, seconds, frames, rng: np.full(frames, len(times) - 1)
    views = lambda settings, times, seconds, frames, views: np.zeros((views, frames), np.int64)
    SAMPLINGS.add("last", Sampling(last, views))
    by = {"sampling": SamplingSettings(kind="last"), "batch_size": 2}
    split = opened("moving_digits", data_root, split="test", label="motion")
    batch = next(load(split, frames=4, **by))
    ends = [split.reader.open(i).read(np.array([15]), None) for i in range(len(split))]
    for clip in batch["clips"]:
        assert any((clip == end).all() for end in ends)
    batch = next(load_views(split, frames=4, views=2, **by))
    expected = split.reader.open(0).read(np.zeros(4, int), None)
    assert (batch["clips"][0] == expected).all()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown pad mode 'loop'; known: repeat"):
        check_sampling(SamplingSettings(pad_mode="loop"))
    with pytest.raises(ValueError, match="unknown kind of sampling 'dense'"):
        check_sampling(SamplingSettings(kind="dense"))
    with pytest.raises(ValueError, match="stride_frames=0"):
        SamplingSettings(stride_frames=0)

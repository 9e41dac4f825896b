import numpy as np
import pytest

from vivit.data.sampling import KINDS, SHORT, Sampling, segments, starts_of_views, strided, timed

EVEN = np.arange(10) / 10  # ten frames a second, one second
UNEVEN = np.array([0.0, 0.1, 0.2, 0.5, 0.9])


class Draw:
    """A generator that draws what it is told."""

    def __init__(self, value):
        self.value = value

    def random(self, size=None):
        return self.value if size is None else np.full(size, self.value)


def test_every_second_frame():
    assert strided(3, frames=3, stride=2, count=10, short="wrap").tolist() == [3, 5, 7]


def test_a_short_video_begins_again_or_holds_its_last_frame():
    assert strided(2, frames=5, stride=1, count=4, short="wrap").tolist() == [2, 3, 0, 1, 2]
    assert strided(2, frames=5, stride=1, count=4, short="repeat").tolist() == [2, 3, 3, 3, 3]


def test_frames_by_time_where_the_rate_is_even():
    clip = timed(EVEN, 0.2, frames=4, stride_seconds=0.2, seconds=1.0, short="wrap")
    assert clip.tolist() == [2, 4, 6, 8]
    between = timed(EVEN, 0.25, frames=2, stride_seconds=0.2, seconds=1.0, short="wrap")
    assert between.tolist() == [2, 4]  # the frames that are on screen


def test_frames_by_time_where_it_is_not():
    clip = timed(UNEVEN, 0.0, frames=5, stride_seconds=0.25, seconds=1.3, short="wrap")
    assert clip.tolist() == [0, 2, 3, 3, 4]


def test_time_runs_on_at_the_beginning_or_stands_still():
    by = {"frames": 4, "stride_seconds": 0.4, "seconds": 1.0}
    assert timed(EVEN, 0.1, short="wrap", **by).tolist() == [1, 5, 9, 3]
    assert timed(EVEN, 0.1, short="repeat", **by).tolist() == [1, 5, 9, 9]


def test_times_in_whole_milliseconds_lose_no_frame():
    times = np.round(np.arange(24) / 12, 3)  # Matroska's
    clip = timed(times, 0.0, frames=24, stride_seconds=1 / 12, seconds=2.0, short="wrap")
    assert clip.tolist() == list(range(24))


def test_the_same_seconds_at_two_rates():
    slow, fast = np.arange(20) / 10, np.arange(60) / 30
    by = {"start": 0.5, "frames": 4, "stride_seconds": 0.3, "seconds": 2.0, "short": "wrap"}
    start = by.pop("start")
    assert (timed(fast, start, **by) / 30).tolist() == pytest.approx(
        (timed(slow, start, **by) / 10).tolist()
    )


def test_segments():
    assert segments(10, frames=5).tolist() == [1, 3, 5, 7, 9]
    assert segments(10, frames=5, draws=np.zeros(5)).tolist() == [0, 2, 4, 6, 8]
    assert segments(10, frames=5, draws=np.full(5, 0.999)).tolist() == [1, 3, 5, 7, 9]
    assert segments(3, frames=6).tolist() == [0, 0, 1, 1, 2, 2]


def test_starts_of_views_are_evenly_spaced_from_end_to_end():
    assert starts_of_views(90, 4).tolist() == [0, 30, 60, 90]
    assert starts_of_views(90, 1).tolist() == [45]


def test_training_draws_any_start_and_no_other():
    sampling = Sampling(stride_frames=2)
    starts = {
        int(sampling.train(EVEN, 1.0, frames=4, rng=np.random.default_rng(i))[0])
        for i in range(200)
    }
    assert starts == {0, 1, 2, 3}  # 3, 5, 7, 9 is the last
    first, last = (sampling.train(EVEN, 1.0, frames=4, rng=Draw(x)) for x in (0.0, 1 - 1e-9))
    assert (first.tolist(), last.tolist()) == ([0, 2, 4, 6], [3, 5, 7, 9])


def test_views_differ_and_span_the_video():
    views = Sampling(stride_frames=2).views(EVEN, 1.0, frames=4, views=4)
    assert views.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [2, 4, 6, 8], [3, 5, 7, 9]]
    by_time = Sampling(stride_seconds=0.2).views(EVEN, 1.0, frames=4, views=2)
    assert by_time.tolist() == [[0, 2, 4, 6], [2, 4, 6, 8]]
    parts = Sampling(kind="segments").views(EVEN, 1.0, frames=2, views=2)
    assert parts.tolist() == [[1, 6], [3, 8]]
    assert Sampling(kind="segments").views(EVEN, 1.0, frames=2, views=1).tolist() == [[2, 7]]


def test_a_video_shorter_than_a_clip_has_one_view():
    views = Sampling(stride_frames=4, short="repeat").views(EVEN[:5], 0.5, frames=4, views=3)
    assert views.tolist() == [[0, 4, 4, 4]] * 3


def test_whole_clips():
    assert Sampling(kind="all").train(EVEN, 1.0, frames=4, rng=None).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="temporal=2"):
        Sampling(kind="all").views(EVEN, 1.0, frames=4, views=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("short", SHORT)
@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("stride", [{"stride_frames": 3}, {"stride_seconds": 0.13}])
def test_frames_are_always_the_videos_own(kind, short, count, stride):
    sampling = Sampling(kind=kind, short=short, **stride)
    times, seconds = np.arange(count) / 25, count / 25
    for i in range(20):
        frames = sampling.train(times, seconds, frames=8, rng=np.random.default_rng(i))
        assert frames.shape == (8,)
        assert (frames >= 0).all()
        assert (frames < count).all()
    views = sampling.views(times, seconds, frames=8, views=1)
    assert views.shape == (1, 8)
    assert ((views >= 0) & (views < count)).all()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown rule for short videos 'loop'; known: repeat"):
        Sampling(short="loop")
    with pytest.raises(ValueError, match="unknown kind of sampling 'dense'"):
        Sampling(kind="dense")
    with pytest.raises(ValueError, match="stride_frames=0"):
        Sampling(stride_frames=0)

"""python -m vivit.analysis.moments --workdir=RUN --video=FILE: the moments of a film that count.

Ranks the moments of a film of any length for a class, follows the region that counts through each
of them, and writes moments.json, a contact sheet (moments.png) and the annotated film (moments.mp4)
into a folder.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from vivit.analysis.attribution import attribute
from vivit.analysis.run import open_run
from vivit.analysis.windows import BATCH, Box, Window, open_film, read_windows, seen_box, windows
from vivit.cli import add_film_arguments, make_parser, run_command, show_log
from vivit.data.sampling import SAMPLINGS
from vivit.data.settings import SamplingSettings
from vivit.data.video import ClipReadError, VideoReader
from vivit.io import write_json
from vivit.run import Run

OVERLAP = 4  # windows in which a frame is
MOST = 3  # moments
SMOOTHED = 4  # values are means over a window's length divided by this
EDGE = 0.5  # of a moment's peak over the film's median: what still belongs to it
BOX = ("top", "left", "height", "width")
REGION = 0.5  # of a frame's largest value: what still belongs to its region


@dataclass(frozen=True)
class Values:
    """What the frames of a film are worth for a class.

    number: of the class. probabilities: of all classes, in each window, [window, class].
    grid: the value of each place of each frame. A place that has its share of a window in which the
    class has probability p is worth p.
    """

    number: int
    windows: Sequence[Window]
    probabilities: Float[np.ndarray, "W classes"]
    grid: Float[np.ndarray, "N Y X"]

    @property
    def frames(self) -> Float[np.ndarray, " N"]:
        """The value of each frame: the mean over its places."""
        return self.grid.mean(axis=(1, 2))


@dataclass(frozen=True)
class Moment:
    """A part of a film, its first frame and the one after its last; its best frame and the value
    of that; and the region of each of its frames on the grid: first row and column, rows, columns.
    """

    begin: int
    end: int
    peak: int
    value: float
    regions: Sequence[Box]


def values_of(
    run: Run,
    video: VideoReader,
    method: str,
    *,
    number: int | None = None,
    overlap: int = OVERLAP,
    params: Any = None,
) -> Values:
    """Returns the values of a film's frames for a class, by a method of attribution.

    The film is seen in windows that overlap. Each window shares the probability that it gives to
    the class among its tokens by what they have of its attributions, where positive: attributions
    alone, such as those of rollout, add up to the same in a window in which nothing happens. The
    mean over all windows of a frame is smoothed in time.

    number: of the class; None for the one with the largest mean probability. overlap: windows in
    which a frame is. params: None for the run's. Raises ValueError for a film that is shorter than
    a window.
    """
    if overlap < 1:
        raise ValueError(f"{overlap=} must be at least 1")
    params = run.params_on_device if params is None else params
    data, (frames, height, width) = run.config.data, run.model.config.clip
    check_length(video, data.sampling, frames)
    parts = windows(video, data.sampling, frames, overlap=overlap)
    size = height, width
    read = lambda: (x for _, x in read_windows(video, parts, data.views, size))  # may be many
    found = np.concatenate([run.predict(clips, params) for clips in read()])[: len(parts)]
    if number is None:
        number = int(found.mean(axis=0).argmax())
    of_class = np.full(BATCH, number)
    heats = [np.asarray(attribute(method, run.model, params, x, of_class)) for x in read()]
    positive = np.maximum(np.concatenate(heats)[: len(parts)].astype(np.float64), 0)
    shares = positive / np.maximum(positive.mean(axis=(1, 2), keepdims=True), 1e-30)
    worth = (shares * found[:, number, None, None]).reshape(-1, *run.model.config.grid)
    grid = blend(worth, parts, len(video.times))
    length = max(int(np.ptp(parts[0].frames)) // SMOOTHED, 1)
    return Values(number, parts, found, ndimage.uniform_filter1d(grid, length, 0, mode="nearest"))


def blend(
    heats: Float[np.ndarray, "W T Y X"], parts: Sequence[Window], frames: int
) -> Float[np.ndarray, "N Y X"]:
    """Returns the mean of windows for each frame of a film. A window counts most in its middle, and
    a frame that no clip has, between two that it has, is like the one before."""
    steps = heats.shape[1]
    weights = np.minimum(np.arange(steps) + 1.0, steps - np.arange(steps))
    total, weight = np.zeros((frames, *heats.shape[2:])), np.zeros(frames)
    for i, (heat, (_, clip)) in enumerate(zip(heats, parts, strict=True)):
        stride = int(clip[-1] - clip[-2]) if len(clip) > 1 else 1
        # Frame rates that vary may leave a gap before the next window.
        ends = [frames] if i == len(parts) - 1 else [clip[-1] + stride, parts[i + 1].frames[0]]
        numbers = np.arange(0 if i == 0 else clip[0], min(max(ends), frames))
        at = np.searchsorted(clip, numbers, side="right") - 1
        at = np.maximum(at, 0) * steps // len(clip)
        total[numbers] += weights[at, None, None] * heat[at]
        weight[numbers] += weights[at]
    return total / weight[:, None, None]


def find_moments(grid: Float[np.ndarray, "N Y X"], *, most: int = MOST) -> list[Moment]:
    """Returns the moments of a film, the best one first.

    A moment is around the best frame that is in no moment yet: the frames on both sides until the
    value is nearer to the film's median than to the best frame's. The slopes of a moment, and
    frames below the median of all, do not make further moments.
    """
    values = grid.mean(axis=(1, 2))
    base, free, moments = float(np.median(values)), np.ones(len(values), bool), []
    steps = np.diff(values)
    rises, falls = np.append(steps >= 0, False), np.insert(steps <= 0, 0, False)
    while len(moments) < most and free.any():
        peak = int(np.where(free, values, -np.inf).argmax())
        if values[peak] <= base:
            break
        enough = free & (values > base + EDGE * (values[peak] - base))
        begin, end = _grown(peak, peak + 1, left=enough, right=enough)
        first, last = _grown(begin, end, left=rises, right=falls)
        free[first:last] = False
        regions = follow(grid[begin:end], peak - begin)
        moments.append(Moment(begin, end, peak, float(values[peak]), regions))
    return moments


def _grown(
    begin: int, end: int, *, left: Bool[np.ndarray, " N"], right: Bool[np.ndarray, " N"]
) -> tuple[int, int]:
    """Returns a range with the frames before it as long as `left` has them, and those after it."""
    while begin > 0 and left[begin - 1]:
        begin -= 1
    while end < len(right) and right[end]:
        end += 1
    return begin, end


def follow(grid: Float[np.ndarray, "N Y X"], start: int) -> list[Box]:
    """Returns the region that counts in each frame: places around the largest value, down to REGION
    of it. Before and after frame `start`, it is the one that has most of the last frame's places,
    and where none has any, the one with the largest value."""
    boxes: dict[int, Box] = {}
    for direction in (range(start, len(grid)), range(start, -1, -1)):
        last = np.zeros(grid.shape[1:], bool)
        for frame in direction:
            labels: Any
            labels, count = ndimage.label(grid[frame] >= REGION * grid[frame].max())  # pyright: ignore
            shared = np.bincount(labels[last], minlength=count + 1)[1:]
            best = labels.ravel()[grid[frame].argmax()]
            last = labels == (shared.argmax() + 1 if shared.any() else best)
            rows, columns = (np.flatnonzero(last.any(axis=axis)) for axis in (1, 0))
            top, left = int(rows[0]), int(columns[0])
            boxes[frame] = top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    return [boxes[frame] for frame in range(len(grid))]


def in_pixels(region: Box, grid: tuple[int, int], box: Box) -> Box:
    """Returns a region of the grid as one of pixels; box: what of the frame the model sees."""
    top, left, height, width = box
    edges = lambda first, count, all, length: [
        round(at * length / all) for at in (first, first + count)
    ]
    y0, y1 = edges(region[0], region[2], grid[0], height)
    x0, x1 = edges(region[1], region[3], grid[1], width)
    return top + y0, left + x0, y1 - y0, x1 - x0


def check_length(video: VideoReader, sampling: SamplingSettings, frames: int) -> None:
    """Raises ValueError for a film that is shorter than a clip of so many frames."""
    needed, seconds = frames, None
    if SAMPLINGS[sampling.kind].strided:
        needed, seconds = (frames - 1) * sampling.stride_frames + 1, sampling.stride_seconds
    short = len(video.times) < needed
    if seconds is not None:
        short = video.seconds + 1e-3 < frames * seconds
    if short:
        raise ValueError(
            f"the film has {len(video.times)} frames in {video.seconds:.2f} s, fewer than a clip "
            "of the run takes; take a longer one, or vivit.predict"
        )


def write_moments(
    run: Run,
    video: str | Path,
    out: str | Path,
    *,
    method: str = "rollout",
    class_name: str | None = None,
    overlap: int = OVERLAP,
    most: int = MOST,
) -> dict[str, Any]:
    """Writes moments.json, moments.png and moments.mp4 of a video file into a new folder; returns
    what the first of them has.

    Times are in seconds from the film's first frame; boxes are in its pixels. class_name: None for
    the class with the largest mean probability. Raises ValueError for a class that the run does not
    have, and for a film that cannot be read or is shorter than a clip.
    """
    from vivit.analysis.moment_pictures import write_pictures

    names = list(run.class_names)
    if class_name is not None and class_name not in names:
        raise ValueError(f"no class {class_name!r}; the run has: {', '.join(names)}")
    if Path(out).exists():
        raise ValueError(f"{out} exists; choose another --out")
    try:
        film = open_film(Path(video), run.config.data)
        number = None if class_name is None else names.index(class_name)
        values = values_of(run, film.video, method, number=number, overlap=overlap)
    except ClipReadError as error:
        raise ValueError(f"{video}: {error}") from error
    moments = find_moments(values.grid, most=most)
    box, grid, times = (
        seen_box(run, film.size),
        run.model.config.grid[1:],
        film.times - film.times[0],
    )
    end_of = lambda frame: float(times[frame]) if frame < len(times) else film.video.seconds
    found = {
        "video": str(video),
        "class": names[values.number],
        "probability": float(values.probabilities[:, values.number].mean()),
        "method": method,
        "moments": [
            {
                "begin": float(times[moment.begin]),
                "end": end_of(moment.end),
                "peak": float(times[moment.peak]),
                "value": moment.value,
                "boxes": [
                    {
                        "frame": moment.begin + i,
                        "seconds": float(times[moment.begin + i]),
                        **dict(zip(BOX, in_pixels(region, grid, box), strict=True)),
                    }
                    for i, region in enumerate(moment.regions)
                ],
            }
            for moment in moments
        ],
        "frames": {"seconds": times.tolist(), "values": values.frames.tolist()},
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=".moments") as place:
        made = Path(place, "made")
        made.mkdir()
        write_json(made / "moments.json", found)
        try:
            write_pictures(film, found, made)
        except ClipReadError as error:
            raise ValueError(f"{video}: {error}") from error
        made.rename(out)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.moments",
        __doc__,
        "python -m vivit.analysis.moments --workdir=runs/mine --video=match.mp4",
        "python -m vivit.analysis.moments --workdir=runs/mine --video=match.mp4 --class=goal",
    )
    add_film_arguments(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="a new folder (default: VIDEO_moments in the run)"
    )
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME", help="(the most probable of the film)"
    )
    parser.add_argument("--method", default="rollout", help="of attribution (rollout)")
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, help="clips in which a frame is (%(default)s)"
    )
    parser.add_argument("--most", type=int, default=MOST, help="moments (%(default)s)")
    arguments = parser.parse_args(argv)
    show_log()
    run = open_run(
        arguments.workdir, checkpoint=arguments.checkpoint, data_root=arguments.data_root
    )
    out = Path(arguments.out or f"{arguments.workdir}/{Path(arguments.video).stem}_moments")
    names = ("method", "class_name", "overlap", "most")
    options = {name: getattr(arguments, name) for name in names}
    found = write_moments(run, arguments.video, out, **options)
    print(f"{found['class']} {found['probability']:.1%}, by {found['method']}")
    for moment in found["moments"]:
        begin, end = moment["begin"], moment["end"]
        print(
            f"{begin:8.2f} s to {end:.2f} s, best at {moment['peak']:.2f} s: {moment['value']:.3f}"
        )
    print(f"wrote {out}/moments.json, moments.png and moments.mp4")


if __name__ == "__main__":
    run_command(main)

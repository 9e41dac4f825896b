"""The frame that comes back is the frame asked for, in every container, or there is an error."""

import os
import socket
import struct

import fsspec
import numpy as np
import pytest

from tests.data import films
from tests.data.films import film, number_of, turned
from vivit.data import decode, decode_pool
from vivit.data.files import fetch, locate, videos_below
from vivit.data.manifest import ClipRow
from vivit.data.settings import ReadLimits
from vivit.data.video import ClipReadError
from vivit.data.video_files import open_video

COUNT = 60
UNEVEN = np.cumsum(np.random.default_rng(0).integers(10, 90, COUNT)).tolist()  # milliseconds
FILMS = {
    "h264 with B-frames": {"options": {"bf": "3", "g": "12"}},
    "h264 without": {"options": {"bf": "0"}},
    "h264 open GOPs": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1"}},
    "variable rate": {"times": UNEVEN, "options": {"bf": "3", "g": "12"}},
    "mkv": {"container": "matroska", "options": {"bf": "3", "g": "12"}},
    "mpegts": {"container": "mpegts", "options": {"bf": "3", "g": "12"}},
    "vp9 webm": {
        "container": "webm",
        "codec": "libvpx-vp9",
        "options": {"deadline": "realtime", "cpu-used": "8", "g": "12"},
    },
    "vp9 webm with hidden frames": {
        "container": "webm",
        "codec": "libvpx-vp9",
        "options": {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "8"},
    },
    "mpeg4 avi": {"container": "avi", "codec": "mpeg4", "options": {"g": "10", "b": "2000000"}},
    "mpeg4 avi with B-frames": {
        "container": "avi",
        "codec": "mpeg4",
        "options": {"bf": "2", "g": "10", "b": "2000000"},
    },
    "10 bit hevc": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "options": {"x265-params": "log-level=none:bframes=3:keyint=12:open-gop=1"},
    },
    "10 bit h264": {"pix_fmt": "yuv420p10le", "options": {"bf": "2", "g": "12"}},
    "odd size": {"size": (65, 97), "pix_fmt": "yuv444p"},
    "with sound": {"audio": True},
}


@pytest.fixture(scope="module", params=FILMS)
def video(request):
    return film(frames=COUNT, **FILMS[request.param])


def test_every_frame_by_itself_is_the_one_asked_for(video):
    found = decode.index(video)
    assert len(found.pts) == COUNT
    for i, pts in enumerate(found.pts):
        assert number_of(decode.read(video, [pts])[0]) == i


def test_every_stride_and_start_gives_the_frames_asked_for(video):
    pts = decode.index(video).pts
    for stride in (1, 2, 7):
        for start in (0, 1, 13, 30):
            numbers = list(range(start, COUNT, stride))
            frames = decode.read(video, [pts[i] for i in numbers])
            assert [number_of(frame) for frame in frames] == numbers


def test_frames_come_in_the_order_asked_for(video):
    pts = decode.index(video).pts
    numbers = [50, 3, 3, 59, 0, 20]
    frames = decode.read(video, [pts[i] for i in numbers])
    assert [number_of(frame) for frame in frames] == numbers


def test_a_segment_has_the_frames_shown_in_it(video):
    whole = decode.index(video)
    for start, end in ((0.5, 1.3), (0.51, 0.99), (1.0, None), (None, 0.7)):
        part = decode.index(video, start=start, end=end)
        low, high = (0 if start is None else start), (1e9 if end is None else end)
        ends = [*whole.times[1:].tolist(), 1e9]
        shown = [i for i, t in enumerate(whole.times) if t < high - 1e-6 and ends[i] > low + 1e-6]
        assert part.pts == [whole.pts[i] for i in shown]
        frames = decode.read(video, part.pts)
        assert [number_of(frame) for frame in frames] == shown


def test_times_are_those_of_presentation():
    found = decode.index(film(times=UNEVEN, frames=COUNT, options={"bf": "3"}))
    expected = (np.array(UNEVEN) - UNEVEN[0]) / 1000
    np.testing.assert_allclose(found.times, expected, atol=1e-3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_held_sideways_is_turned_upright(degrees):
    found = decode.index(turned(film(frames=8), degrees))
    frame = decode.read(turned(film(frames=8), degrees), found.pts[5:6])[0]
    assert frame.shape[:2] == ((64, 96) if degrees == 180 else (96, 64))
    assert frame.shape[:2] == (found.height, found.width)
    # A player turns clockwise by the file's degrees; turned back, it is the picture again.
    assert number_of(np.rot90(frame, degrees // 90)) == 5


def test_the_size_is_that_of_the_frame_as_shown():
    data = turned(film(frames=4), 90)
    frames = decode.read(data, decode.index(data).pts, height=48, width=32)
    assert frames.shape == (4, 48, 32, 3)
    window = decode.read(data, decode.index(data).pts, height=48, width=32, window=(8, 4, 16, 20))
    np.testing.assert_array_equal(window, frames[:, 8:24, 4:24])


def test_an_edit_list_hides_the_frames_before_it():
    data = film(frames=30, options={"bf": "0", "g": "5"})
    media = data.index(b"elst") + 12 + 4  # version, count, duration; then the edit's media time
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    data = data[:media] + struct.pack(">I", scale * 7 // 25) + data[media + 4 :]
    found = decode.index(data)
    numbers = [number_of(frame) for frame in decode.read(data, found.pts)]
    assert numbers == list(range(7, 30))
    assert found.times[0] == 0


def test_a_video_may_end_before_its_sound_or_begin_late():
    times = [1500 + 40 * i for i in range(50)]
    found = decode.index(film(container="matroska", frames=50, times=times))
    assert found.times[0] == 0
    assert found.seconds == pytest.approx(2.0, abs=0.05)
    longer = film(frames=10, audio=True)  # 0.4 s of pictures, a second of sound
    assert len(decode.index(longer).pts) == 10


def test_a_last_frame_lasts_as_long_as_its_file_says():
    found = decode.index(film(frames=3, times=[0, 330, 10_000]))
    assert found.seconds < 11


def test_seconds_and_rate():
    found = decode.index(film(frames=50, rate=10))
    assert found.seconds == pytest.approx(5.0, abs=1e-3)
    assert found.rate == pytest.approx(10.0, abs=1e-2)


# --- what is not a video, or no longer one ---


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    # One thread: with more, x264's file depends on what the process has encoded before.
    options = {"g": "12", "threads": "1"}
    return film(tmp_path_factory.mktemp("good") / "good.mp4", frames=COUNT, options=options)


def damaged_files(folder):
    """name -> path and the kind that it must be reported as."""
    data = film(frames=COUNT, options={"g": "12", "bf": "2"})
    files = {}

    def write(name, content, kind):
        (folder / name).write_bytes(content)
        files[name] = kind

    write("empty.mp4", b"", "damaged")
    write("page.mp4", b"<!doctype html><title>Sign in</title>" * 40, "damaged")
    write("no_moov.mp4", data[: data.index(b"moov") - 4], "damaged")
    write("zeros.mp4", bytes(20_000), "damaged")
    start = film(frames=COUNT, options={"g": "12", "movflags": "faststart"})
    write("truncated.mp4", data[: len(data) // 2], "damaged")
    write("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "damaged")
    write("concat.mp4", b"ffconcat version 1.0\nfile good.mp4\n", "damaged")
    assert start
    films.sound(folder / "sound.mp4")
    files["sound.mp4"] = "audio only"
    (folder / "folder.mp4").mkdir()
    files["folder.mp4"] = "not a file"
    os.mkfifo(folder / "pipe.mp4")
    files["pipe.mp4"] = "not a file"
    server = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)  # names of sockets are short
    server.bind("socket.mp4")
    os.chdir(before)
    server.close()
    files["socket.mp4"] = "not a file"
    outside = folder.parent / "outside.mp4"
    outside.write_bytes(data)
    (folder / "broken_link.mp4").symlink_to(folder / "nothing.mp4")
    files["broken_link.mp4"] = "missing"
    files["../outside.mp4"] = "outside"
    files[str(outside)] = "outside"
    files["nothing.mp4"] = "missing"
    files["zero\0byte.mp4"] = "missing"
    return files


def open_file(row, root, **fields):
    return open_video(row, root, limits=ReadLimits(**fields))


def read_all(row, root, **fields):
    video = open_file(row, root, **fields)
    return video.read(np.arange(len(video.times)), None)


def test_damage_is_refused_by_name_in_the_child(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    for name, kind in damaged_files(folder).items():
        with pytest.raises(ClipReadError) as caught:
            read_all(ClipRow(name, "train", {"label": 0}), folder)
        assert caught.value.kind == kind, (name, str(caught.value))


def test_links_are_followed_unless_they_are_refused(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    (disk / "sub").mkdir(parents=True)
    root.mkdir()
    film(disk / "sub" / "a.mp4", frames=3)
    (root / "sub").symlink_to(disk / "sub")
    (root / "b.mp4").symlink_to(disk / "sub" / "a.mp4")
    (disk / "sub" / "again").symlink_to(root)  # a cycle
    assert videos_below(root) == ["b.mp4", "sub/a.mp4"]
    for name in ("b.mp4", "sub/a.mp4"):
        row = ClipRow(name, "train", {})
        assert len(read_all(row, root)) == 3
        with pytest.raises(ClipReadError, match="symbolic link") as caught:
            read_all(row, root, follow_links=False)
        assert caught.value.kind == "outside"
    for name in ("../disk/sub/a.mp4", "sub/../b.mp4", str(disk / "sub" / "a.mp4")):
        with pytest.raises(ClipReadError) as caught:
            read_all(ClipRow(name, "train", {}), root)
        assert caught.value.kind == "outside"
    with pytest.raises(ValueError, match="no video files"):
        videos_below(root, follow_links=False)
    (root / "real.mp4").write_bytes((disk / "sub" / "a.mp4").read_bytes())
    assert videos_below(root, follow_links=False) == ["real.mp4"]
    linked = tmp_path / "linked_root"  # the root is the user's choice
    linked.symlink_to(root)
    assert len(read_all(ClipRow("real.mp4", "train", {}), linked, follow_links=False)) == 3


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm", "avi", "mpegts"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_gives_the_right_frames_or_none(container, share):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(container, "libx264")
    options = {"g": "12", "movflags": "faststart"} if container == "mp4" else {"g": "12"}
    data = film(frames=COUNT, container=container, codec=codec, options=options)
    data = data[: int(len(data) * share)]
    try:
        found = decode.index(data)
        numbers = [number_of(frame) for frame in decode.read(data, found.pts)]
    except ClipReadError:
        return
    assert container != "mp4"  # whose index says how many frames there must be
    # Every frame is the one of its time; the last B-frames may be lost before a later frame is.
    assert numbers == np.round(found.times * 25).astype(int).tolist()


def test_a_wrong_name_is_no_damage(tmp_path):
    film(tmp_path / "really_webm.mp4", container="webm", codec="libvpx-vp9", frames=9)
    video = open_file(ClipRow("really_webm.mp4", "train", {}), tmp_path)
    numbers = [number_of(x) for x in video.read(np.arange(9), None)]
    assert numbers == list(range(9))


def test_one_frame_is_a_video():
    found = decode.index(film(frames=1))
    assert len(found.pts) == 1
    assert number_of(decode.read(film(frames=1), found.pts)[0]) == 0


def test_a_frame_too_large_is_refused_before_it_is_decoded(good):
    with pytest.raises(ClipReadError, match="96 x 64 pixels are larger than the 6000") as caught:
        decode_pool.index(str(good), largest_frame=6000)
    assert caught.value.kind == "too large"
    huge = film(frames=1, size=(8192, 8192), codec="mjpeg", pix_fmt="yuvj420p")
    with pytest.raises(ClipReadError, match="8192 x 8192 pixels are larger") as caught:
        decode_pool.index(data=huge)
    assert caught.value.kind == "too large"
    assert decode_pool.index(data=huge, largest_frame=8192 * 8192).height == 8192


def test_bit_flips_never_give_another_frame(good):
    """300 files of one flipped bit: refused, or the frames asked for (one in 300 is not).

    Some make another file that is whole, of other times or pixels: only a checksum tells (below).
    """
    data = good.read_bytes()
    rng = np.random.default_rng(1)
    refused, wrong, media = 0, 0, data.index(b"moov") * 8
    for place in rng.integers(0, len(data) * 8, 300):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        try:
            found = decode_pool.index(data=bytes(flipped), timeout=20.0)
            frames = decode_pool.read(data=bytes(flipped), pts=found.pts, timeout=20.0)
        except ClipReadError:
            refused += 1
            continue
        if place < media:
            wrong += [number_of(frame) for frame in frames] != list(range(COUNT))
    assert refused > 150
    assert wrong <= 3


def test_a_checksum_in_the_manifest_refuses_every_flip(good, tmp_path):
    import hashlib

    data = good.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "a.mp4").write_bytes(data)
    assert open_file(ClipRow("a.mp4", "train", {}, sha256=digest), tmp_path).times.shape == (COUNT,)
    for place in (40, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        (tmp_path / "a.mp4").write_bytes(flipped)
        with pytest.raises(ClipReadError, match="is not the file that the manifest's sha256 is of"):
            open_file(ClipRow("a.mp4", "train", {}, sha256=digest), tmp_path)


def test_uris_stay_below_their_root(tmp_path):
    (tmp_path / "in").mkdir()
    film(tmp_path / "in" / "a.mp4", frames=3)
    assert locate(f"file://{tmp_path}/in", "a.mp4") == f"{tmp_path}/in/a.mp4"
    root = "memory://videos/in"
    fsspec.filesystem("memory").pipe("/videos/in/a.mp4", (tmp_path / "in/a.mp4").read_bytes())
    path, data = fetch(locate(root, "a.mp4"))
    assert path is None
    assert len(decode.index(data).pts) == 3
    video = open_file(ClipRow("memory://videos/in/a.mp4", "train", {}), root)
    assert [number_of(x) for x in video.read(np.arange(3), None)] == [0, 1, 2]
    for outside in ("../a.mp4", "memory://videos/b.mp4", "gs://other/a.mp4"):
        with pytest.raises(ClipReadError) as caught:
            locate(root, outside)
        assert caught.value.kind == "outside"
    with pytest.raises(ClipReadError) as caught:
        locate(tmp_path, "https://example.org/a.mp4")
    assert caught.value.kind == "outside"
    with pytest.raises(ClipReadError) as caught:
        fetch(locate(root, "b.mp4"))
    assert caught.value.kind == "unreadable"

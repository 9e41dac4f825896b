import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.films import film, number_of
from vivit.data import child, guard
from vivit.data.decode import Damaged


@pytest.fixture
def tricks(tmp_path, monkeypatch):
    """Children that can also hang and crash as decoders do."""
    (tmp_path / "tricks.py").write_text(
        "import ctypes, time\n"
        "from vivit.data import child\n"
        "def hang(source):\n"
        "    ctypes.CDLL(None).sleep(60)\n"
        "def crash(source):\n"
        "    ctypes.string_at(0)\n"
        "def noise(source):\n"
        "    print('a library speaks', flush=True)\n"
        "    return {}, b''\n"
        "child.FUNCTIONS |= {'hang': hang, 'crash': crash, 'noise': noise}\n"
        "child.main()\n"
    )
    real = subprocess.Popen

    def popen(command, **kwargs):
        if "vivit.data.child" in command:
            assert "-P" in command  # or a folder named vivit here would be run
            command = [sys.executable, str(tmp_path / "tricks.py"), command[-1]]
        return real(command, **kwargs)

    monkeypatch.setattr(guard.subprocess, "Popen", popen)
    forget()
    yield
    forget()


def forget():
    while guard._idle:
        guard._idle.pop().close()


def test_a_decoder_that_hangs_is_ended_and_the_next_clip_is_read(tricks):
    guard.counts.clear()
    begun = time.monotonic()
    with pytest.raises(Damaged, match=r"not decoded within 1 s") as caught:
        guard.call("hang", timeout=1.0)
    assert time.monotonic() - begun < 4
    assert caught.value.kind == "timed out"
    found = guard.index(data=film(frames=5))
    assert len(found.pts) == 5
    assert guard.counts == {"started": 2, "timed out": 1}


def test_a_decoder_that_crashes_takes_nothing_with_it(tricks):
    guard.counts.clear()
    with pytest.raises(Damaged, match="ended with status -11") as caught:
        guard.call("crash", timeout=5.0)
    assert caught.value.kind == "crashed"
    assert len(guard.index(data=film(frames=5)).pts) == 5
    assert guard.counts == {"started": 2, "crashed": 1}


def test_what_a_library_prints_is_no_answer(tricks):
    assert guard.call("noise", timeout=5.0)[0] == {}
    assert len(guard.index(data=film(frames=5)).pts) == 5


def test_a_child_that_was_killed_between_calls_is_replaced():
    guard.index(data=film(frames=2))
    os.kill(guard._idle[-1].process.pid, signal.SIGKILL)
    with pytest.raises(Damaged):
        guard.index(data=film(frames=2))
    assert len(guard.index(data=film(frames=2)).pts) == 2


def test_a_child_ends_with_the_process_that_it_works_for(tmp_path):
    code = (
        "from vivit.data import guard\nfrom tests.data.films import film\n"
        "guard.index(data=film(frames=2))\nprint(guard._idle[-1].process.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(out.stdout)
    for _ in range(50):
        if not os.path.exists(f"/proc/{pid}"):
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return  # ended; nobody has asked for its status
        time.sleep(0.1)
    raise AssertionError("the child lives on")


def test_children_load_neither_jax_nor_tensorflow_datasets():
    code = "import sys, vivit.data.child; print([m for m in sys.modules if m in ('jax', 'tfds')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert set(child.FUNCTIONS) == {"index", "read", "transcode", "hash"}


def test_an_interrupted_call_leaves_no_answer_for_the_next(monkeypatch):
    data = film(frames=40)
    pts = guard.index(data=data).pts
    real = guard._wait

    def interrupt(*arguments):
        if arguments[1] == guard.select.POLLIN:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(guard, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        guard.read(data=data, pts=pts[30:31])
    monkeypatch.setattr(guard, "_wait", real)
    assert number_of(guard.read(data=data, pts=pts[3:4])[0]) == 3


def test_many_open_files_are_no_hindrance(tmp_path):
    forget()
    files = [open(os.devnull) for _ in range(1100)]
    try:
        assert len(guard.index(data=film(frames=3)).pts) == 3
    finally:
        for file in files:
            file.close()
        forget()


def test_frames_come_through_whole():
    data = film(frames=40)
    found = guard.index(data=data)
    frames = guard.read(data=data, pts=found.pts[::3])
    assert [number_of(frame) for frame in frames] == list(range(0, 40, 3))
    assert frames.dtype == np.uint8

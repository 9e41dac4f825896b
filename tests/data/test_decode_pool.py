import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.films import film, number_of
from vivit.data import decode_pool
from vivit.data.video import ClipReadError


@pytest.fixture
def tricks(tmp_path, monkeypatch):
    """Functions that hang and crash as decoders do, for worker processes."""
    (tmp_path / "tricks.py").write_text(
        "import ctypes\n"
        "def hang(source):\n"
        "    while True: pass\n"
        "def wait(source, seconds):\n"
        "    ctypes.CDLL(None).usleep(int(1e6 * seconds))\n"
        "    return {}, b''\n"
        "def crash(source):\n"
        "    ctypes.string_at(0)\n"
        "def noise(source):\n"
        "    print('a library speaks', flush=True)\n"
        "    return {}, b''\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forget()
    yield
    forget()


def forget():
    while decode_pool._idle:
        decode_pool._idle.pop().close()


def test_a_decoder_that_hangs_is_ended_and_the_next_clip_is_read(tricks):
    decode_pool.counts.clear()
    with pytest.raises(ClipReadError, match=r"not decoded within 0.5 s") as caught:
        decode_pool.call("tricks:hang", timeout=0.5)
    assert caught.value.kind == "timed out"
    found = decode_pool.index(data=film(frames=5))
    assert len(found.pts) == 5
    assert decode_pool.counts == {"started": 2, "timed out": 1}


def test_a_decoder_that_waits_is_ended_later(tricks):
    """A busy machine, or a disk that is slow for a while, does not decide which clips are read."""
    assert decode_pool.call("tricks:wait", timeout=0.5, seconds=1.0)[0] == {}
    with pytest.raises(ClipReadError, match=r"not decoded within 0.05 s") as caught:
        decode_pool.call("tricks:wait", timeout=0.05, seconds=60.0)
    assert caught.value.kind == "timed out"
    assert len(decode_pool.index(data=film(frames=5)).pts) == 5


def test_a_decoder_that_crashes_takes_nothing_with_it(tricks):
    decode_pool.counts.clear()
    with pytest.raises(ClipReadError, match="ended with status -11") as caught:
        decode_pool.call("tricks:crash", timeout=5.0)
    assert caught.value.kind == "crashed"
    assert len(decode_pool.index(data=film(frames=5)).pts) == 5
    assert decode_pool.counts == {"started": 2, "crashed": 1}


def test_what_a_library_prints_is_no_answer(tricks):
    assert decode_pool.call("tricks:noise", timeout=5.0)[0] == {}
    assert len(decode_pool.index(data=film(frames=5)).pts) == 5


def test_a_child_that_was_killed_between_calls_is_replaced():
    decode_pool.index(data=film(frames=2))
    child = decode_pool._idle[-1].process
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert len(decode_pool.index(data=film(frames=2)).pts) == 2


def test_a_child_ends_with_the_process_that_it_works_for(tmp_path):
    code = (
        "from vivit.data import decode_pool\nfrom tests.data.films import film\n"
        "decode_pool.index(data=film(frames=2))\n"
        "print(decode_pool._idle[-1].process.pid, flush=True)\n"
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


def test_workers_load_neither_jax_nor_tensorflow_datasets():
    code = (
        "import sys, vivit.data.decode_worker, vivit.dataprep.encode\n"
        "print({'jax', 'tensorflow_datasets', 'grain'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_an_interrupted_call_leaves_no_answer_for_the_next(monkeypatch):
    data = film(frames=40)
    pts = decode_pool.index(data=data).pts
    real = decode_pool.json.loads

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decode_pool.json, "loads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_pool.read(data=data, pts=pts[30:31])
    monkeypatch.setattr(decode_pool.json, "loads", real)
    assert number_of(decode_pool.read(data=data, pts=pts[3:4])[0]) == 3


def test_many_open_files_are_no_hindrance(tmp_path):
    forget()
    files = [open(os.devnull) for _ in range(1100)]
    try:
        assert len(decode_pool.index(data=film(frames=3)).pts) == 3
    finally:
        for file in files:
            file.close()
        forget()


def test_frames_come_through_whole():
    data = film(frames=40)
    found = decode_pool.index(data=data)
    frames = decode_pool.read(data=data, pts=found.pts[::3])
    assert [number_of(frame) for frame in frames] == list(range(0, 40, 3))
    assert frames.dtype == np.uint8

"""5,000 mutated files, and 20,000 clips: minutes of work, so with -m slow."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import load, opened
from tests.data.films import film, number_of
from vivit.data import decode_pool
from vivit.data.files import fetch
from vivit.data.video import ClipReadError

COUNT = 24
SEEDS = {
    "mp4": {"options": {"g": "8", "bf": "2"}},
    "webm": {
        "container": "webm",
        "codec": "libvpx-vp9",
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "avi": {"container": "avi", "codec": "mpeg4", "options": {"g": "8", "bf": "1"}},
    "mkv": {"container": "matroska", "options": {"g": "8"}},
    "ts": {"container": "mpegts", "options": {"g": "8"}},
}


def mutate(data, rng):
    """A file that something happened to."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data)))
        length = int(rng.integers(1, 400))
        kind = rng.integers(6)
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place : place + length] = bytes(min(length, len(data) - place))
        elif kind == 2:
            data[place : place + length] = rng.bytes(min(length, len(data) - place))
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[max(0, place - length) : place]
        else:
            del data[max(place, 100) :]
    return bytes(data)


@pytest.mark.slow
def test_5000_mutated_files_end_in_an_answer():
    """Right frames or an error, within the time; what decoders can't see, the checksum does."""
    decode_pool.counts.clear()
    rng, answers = np.random.default_rng(0), Counter()
    seeds = {name: film(frames=COUNT, **fields) for name, fields in SEEDS.items()}
    for i in range(5000):
        name = list(seeds)[i % len(seeds)]
        data = mutate(seeds[name], rng)
        try:
            found = decode_pool.index(data=data, timeout=10.0)
            frames = decode_pool.read(data=data, pts=found.pts[:64], timeout=10.0)
        except ClipReadError as error:
            answers[error.kind] += 1
            continue
        numbers = [number_of(frame) for frame in frames]
        right = numbers == list(range(len(numbers))) and frames.shape[1:] == (64, 96, 3)
        answers["right" if right else "other pictures"] += 1
    print(dict(answers), dict(decode_pool.counts))
    assert sum(answers.values()) == 5000
    assert answers["right"] > 100
    assert answers["other pictures"] < 1000  # whole files of another content


@pytest.mark.slow
def test_a_checksum_refuses_every_mutation(tmp_path):
    data, rng = film(frames=COUNT), np.random.default_rng(1)
    digest = hashlib.sha256(data).hexdigest()
    for i in range(300):
        other = mutate(data, rng)
        (tmp_path / "a.mp4").write_bytes(other)
        if other == data:
            continue
        with pytest.raises(ClipReadError, match="sha256"):
            fetch(str(tmp_path / "a.mp4"), sha256=digest)
        assert i >= 0


def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS"))


@pytest.mark.slow
def test_memory_is_flat_over_20000_clips(prepared):
    split = opened("h264", prepared, split="train", label="label")
    batches = load(split, frames=8, batch_size=10)

    def use(count):
        for _ in range(count // 10):
            next(batches)
        # This process, and the decoders that its threads have.
        own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        children = [int(x) for task in own for x in task.read_text().split()]
        return resident(os.getpid()), max(map(resident, children)), len(children)

    before = use(2000)
    after = use(18_000)
    print(f"MB here and in the largest decoder, decoders: {before} then {after}")
    batches.close()
    assert after[0] < before[0] + 20
    assert after[1] < before[1] + 5
    assert after[1] < 250
    assert after[2] == before[2]

"""What surrounds the step: batches that are ready before it, its pace, and traces."""

import json
import time

import numpy as np
import pytest

from vivit.chips import CHIPS
from vivit.cost import count
from vivit.data.pipeline import Batches
from vivit.data.prefetch import Prefetched
from vivit.data.settings import DataSettings
from vivit.data.split import Split
from vivit.model import build
from vivit.profiling import parse_profile
from vivit.train import train


class Fifty:
    """Clips that nothing opens."""

    open = label = name = id = staticmethod(str)

    def __len__(self):
        return 50


SPLIT = Split(Fifty(), {}, (32, 32), 32, "train", "", "", "")


def numbered(seconds=0.0, until=100):
    """Batches 0, 1, ...; each takes `seconds` to load, and number 2 has a damaged clip."""
    for i in range(until):
        time.sleep(seconds)
        failures = np.full((1, 2), -1)
        if i == 2:
            failures[0] = 7, 1
        yield {"number": np.array([i]), "failures": failures}


def batches_of(iterator, **settings):
    return Batches(iterator, SPLIT, DataSettings(**settings))


def prefetched(iterator, depth=2, place=lambda batch: int(batch["number"][0]), **settings):
    return Prefetched(batches_of(iterator, **settings), place, depth=depth)


@pytest.mark.parametrize("depth", [1, 3])
def test_batches_come_in_order_and_damage_counts_when_they_are_used(depth):
    ahead = prefetched(numbered(), depth)
    assert [ahead.get(lambda: None) for _ in range(2)] == [0, 1]
    assert ahead.batches.damaged == {}  # though it is loaded already
    assert [ahead.get(lambda: None) for _ in range(8)] == list(range(2, 10))
    assert set(ahead.batches.damaged) == {7}
    ahead.close()


def test_no_more_than_depth_batches_are_ahead():
    placed = []
    ahead = prefetched(numbered(), 3, place=placed.append)
    ahead.get(lambda: None)
    time.sleep(0.2)
    assert len(placed) == 4
    ahead.close()


def test_waiting_counts_only_what_the_devices_wait():
    ahead = prefetched(numbered(0.1), 1)
    ahead.get(lambda: None)
    ahead.waited = 0.0
    busy = []
    for _ in range(3):
        ahead.get(lambda: busy.append(time.sleep(0.05)))  # the devices have work for 0.05 s
    assert len(busy) == 3
    assert 0.03 < ahead.waited < 0.25  # 3 x 0.05, not 3 x 0.1
    time.sleep(0.3)
    before = ahead.waited
    ahead.get(lambda: pytest.fail("the batch is there"))
    assert ahead.waited == before
    ahead.close()


def test_errors_of_the_loader_are_raised_where_the_batch_is_used():
    def failing():
        yield from numbered(until=1)
        raise ValueError("8 clips in a row can't be read")

    ahead = prefetched(failing())
    ahead.get(lambda: None)
    with pytest.raises(ValueError, match="8 clips in a row"):
        ahead.get(lambda: None)
    ahead.close()


def test_damage_that_other_processes_found_counts_and_has_the_limit(monkeypatch):
    found = [[[1, 0], [2, 1]], [[2, 1], [3, 0]]]
    monkeypatch.setattr("vivit.data.pipeline.gather", lambda own: found)
    batches = batches_of(iter(()), max_bad_fraction=0.1)
    batches.share_damaged()
    assert set(batches.damaged) == {1, 2, 3}
    found.append([[i, 0] for i in range(4, 8)])
    with pytest.raises(ValueError, match="6 of the 50 clips of split 'train' can't be read"):
        batches.share_damaged()


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_waiting_flops_and_mfu_and_the_run_a_trace(tmp_path, tiny_config, monkeypatch):
    class SlowToStart(Prefetched):
        def get(self, finish):
            self.waited = self.waited or 1e3  # for the first batch, before there are steps
            return super().get(finish)

    monkeypatch.setattr("vivit.train.Prefetched", SlowToStart)
    monkeypatch.setattr("vivit.metrics_log.chip_of", lambda kind: CHIPS["v5e"])
    config = tiny_config("--config.train.steps=4", "--config.data.prefetch=1")
    train(config, tmp_path / "run", profile=(2, 3))
    each = 6 * count(build(config.model))["multiply_adds"]
    for row in rows_of(tmp_path / "run"):
        if row["split"] == "train":
            assert 0 <= row["waiting"] < 1
            flops = row["model_flops_per_second"]
            np.testing.assert_allclose(flops, each * row["clips_per_second"])
            np.testing.assert_allclose(row["mfu"], flops / 197e12)  # its peak in float32 too
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))


def test_a_chip_that_is_not_in_the_table_has_no_mfu(tiny_run):
    assert all("mfu" not in row for row in rows_of(tiny_run))


@pytest.mark.parametrize(("text", "steps"), [("2:3", (2, 3)), ("5:5", (5, 5))])
def test_profile_is_two_steps(text, steps):
    assert parse_profile(text) == steps


@pytest.mark.parametrize("text", ["3", "3:2", "0:2", "a:b", "3:4:5"])
def test_other_profiles_are_one_error(text):
    with pytest.raises(ValueError, match=f"--profile={text} is not like 100:110"):
        parse_profile(text)


def test_a_profile_outside_the_run_is_one_error(tmp_path, tiny_config):
    with pytest.raises(ValueError, match=r"--profile=5:9 is not in the steps 1 \.\. 6"):
        train(tiny_config(), tmp_path / "run", profile=(5, 9))


def test_no_prefetch_is_refused():
    with pytest.raises(ValueError, match=r"data\.prefetch=0 is not positive"):
        DataSettings(prefetch=0)

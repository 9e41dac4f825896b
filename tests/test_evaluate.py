import json
from dataclasses import replace

import numpy as np
import pytest

from vivit.config import as_json
from vivit.data.pipeline import eval_batches
from vivit.data.views import make_views
from vivit.evaluate import collect, evaluate, main, score
from vivit.parallel import make_parallel
from vivit.run import Run
from vivit.step import make_eval_step
from vivit.tasks.classify import per_class


def test_every_clip_counts_once_whatever_the_batch(tiny_run):
    run = Run(tiny_run, "latest")
    split, data = run.data, run.config.data
    parallel = make_parallel(run.config.parallel)
    predict_views = make_views(data.views, split, (32, 32))
    step = parallel.evaluate(make_eval_step(run.model, run.task, predict_views=predict_views))
    params = parallel.place(run.params)
    results = [
        score(
            collect(
                step,
                params,
                eval_batches(replace(data, batch_size=size), split, frames=16),
                parallel,
            ),
            run.task,
        )
        for size in (21, 8, 5)  # whole, and with 3 and 4 clips of padding
    ]
    for result in results:
        confusion = result.clips.heads["motion"].confusion
        assert confusion.sum() == 21
        np.testing.assert_array_equal(confusion, results[0].clips.heads["motion"].confusion)
        assert result.metrics == pytest.approx(results[0].metrics, rel=1e-5)
        top1 = np.trace(confusion) / 21
        assert result.metrics["top1"] == pytest.approx(top1)
    labels = [split.labels_of(i)["motion"] for i in range(len(split))]
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=8))


def test_the_file_says_what_was_scored(tiny_run, tiny_config, capsys):
    main([f"--workdir={tiny_run}", "--checkpoint=latest"])
    assert "top-1" in capsys.readouterr().out
    result = json.loads((tiny_run / "eval/test_00000006_1x1.json").read_text())
    assert result["clips"] == 21
    assert result["checkpoint"] == "checkpoints/6"
    assert result["config"] == as_json(tiny_config())
    assert result["data"]["version"] == "1.1.0"
    assert len(result["data"]["digest"]) == 64
    assert len(result["per_class"]) == 8


def test_per_class_by_hand():
    rows = per_class(np.array([[3, 1], [0, 0]]), ("a", "b"))
    assert rows == [
        {"class": "a", "clips": 4, "recall": 0.75, "precision": 1.0},
        {"class": "b", "clips": 0, "recall": None, "precision": 0.0},
    ]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        evaluate(tmp_path)

import numpy as np
import pytest
from pyarrow import parquet

from vivit.evaluate import compare, evaluate, main
from vivit.results import ClipScores, average_probabilities, read_clips, read_rows, top_classes
from vivit.run import Run
from vivit.tasks import Classify


def scores(logits, labels):
    logits = np.array(logits, np.float32)
    task = Classify({"label": logits.shape[1]})
    return ClipScores(np.arange(len(labels)), np.array(labels), logits, task)


def test_scores_by_hand():
    found = scores([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]], [0, 1, 0])
    np.testing.assert_array_equal(found.right, [1, 0, 0])  # a tie is a miss
    np.testing.assert_array_equal(found.heads["label"].confusion, [[1, 1], [1, 0]])
    assert found.losses[1] == pytest.approx(np.log(2))
    assert found.metrics["top1"] == pytest.approx(1 / 3)


def test_the_rows_hold_what_the_scores_say(tiny_run):
    path = evaluate(tiny_run, checkpoint="latest", logits=True)
    run = Run(tiny_run, "latest")
    rows = read_rows(path.with_suffix(".parquet"))
    clips = read_clips(path.with_suffix(".parquet"), run.task)
    result = run.scores(step=6)
    assert len(rows) == result["clips"] == 21
    names = run.data.class_names
    assert [row["label"] for row in rows] == [
        names[run.data.labels_of(i)["motion"]] for i in range(21)
    ]
    assert [row["id"] for row in rows] == [str(i) for i in range(21)]
    for key in ("loss", "top1", "top5"):
        assert clips.metrics[key] == pytest.approx(result[key], rel=1e-5)
    assert np.mean([row["loss"] for row in rows]) == pytest.approx(result["loss"], rel=1e-5)
    hits = [row["classes"][0] == row["label"] for row in rows]
    assert np.mean(hits) == pytest.approx(result["top1"])
    probabilities = np.array([row["probabilities"] for row in rows])
    assert (np.diff(probabilities) <= 0).all()
    # The same clips through Run.predict.
    images, _ = run.clips([4, 7])
    np.testing.assert_allclose(
        run.predict(images), clips.heads["motion"].probabilities[[4, 7]], atol=1e-5
    )


def test_logits_are_not_lost_when_scores_are_made_again(tiny_run):
    path = evaluate(tiny_run, checkpoint="latest", logits=True).with_suffix(".parquet")
    evaluate(tiny_run, checkpoint="latest")
    assert read_clips(path, Run(tiny_run).task) is not None


def test_logits_are_kept_on_request_only(tiny_run):
    path = evaluate(tiny_run, checkpoint="latest", split="validation").with_suffix(".parquet")
    assert "logits" not in parquet.read_schema(path).names
    assert read_clips(path, Run(tiny_run).task) is None


def test_scores_of_several_views_stand_next_to_each_other(tiny_run):
    evaluate(tiny_run, checkpoint="latest")
    with pytest.raises(ValueError, match="these views would be equal"):
        evaluate(tiny_run, checkpoint="latest", views="1x3")
    evaluate(tiny_run, checkpoint="latest", views="2x1")
    found = [(x["split"], x["step"], x["views"]) for x in Run(tiny_run).evaluations()]
    assert {("test", 6, "1x1"), ("test", 6, "2x1")} <= set(found)
    assert Run(tiny_run).scores(step=6)["views"] == "1x1"
    assert Run(tiny_run).scores(step=6, views="2x1")["views"] == "2x1"


def test_mean_probabilities_by_hand():
    one, other = scores([[0.0, np.log(3)]], [1]), scores([[np.log(3), 0.0]], [1])
    mean = average_probabilities([one, other])
    np.testing.assert_allclose(mean.heads["label"].probabilities, [[0.5, 0.5]], atol=1e-6)
    with pytest.raises(ValueError, match="the same clips"):
        average_probabilities([one, scores([[0.0, 0.0]] * 2, [1, 1])])


def test_mcnemar_by_hand():
    right, wrong = [[1.0, 0.0]], [[0.0, 1.0]]
    one = scores(right * 6 + wrong, [0] * 7)
    other = scores(wrong * 6 + right, [0] * 7)
    assert compare(one, other) == (6, 1, pytest.approx(2 * (1 + 7) / 2**7))
    assert compare(one, one) == (0, 0, 1.0)


def test_the_best_classes_come_first():
    best = top_classes(np.array([[0.2, 0.5, 0.3]]), ("a", "b", "c"), k=2)
    assert best == [[("b", 0.5), ("c", 0.3)]]


def test_an_ensemble_on_the_command_line(tiny_run, tmp_path, capsys):
    with pytest.raises(ValueError, match="needs two runs or more"):
        main(["--ensemble", str(tiny_run)])
    copy = tmp_path / "copy"
    copy.symlink_to(tiny_run)
    main(["--ensemble", str(tiny_run), str(copy), "--checkpoint=latest"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test: 21 clips in the config's views, latest checkpoints"
    assert lines[4].startswith("ensemble")
    assert lines[2].split()[1:] == lines[3].split()[1:] == lines[4].split()[1:]
    assert "McNemar p = 1" in lines[-1]

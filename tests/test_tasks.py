"""Tasks: one class of each label, several labels at once, and several classes of a label."""

import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from experiments.collect import collect, markdown
from vivit import pretrained
from vivit.analysis.report import write_report
from vivit.config import as_config, read_config
from vivit.data import moving_digits
from vivit.data.augment import make_augmentation
from vivit.data.classes import Classes
from vivit.data.settings import AugmentSettings, DataSettings
from vivit.data.sources import open_split
from vivit.data.split import Split
from vivit.data.whole_clips import WholeClips
from vivit.dataprep.prepare import prepare_registered
from vivit.evaluate import evaluate, evaluate_ensemble
from vivit.objective import cross_entropy, hits_any, means
from vivit.predict import predictor_of_weights
from vivit.predictions import Prediction, Printer
from vivit.results import ClipScores, parts_by_head, read_clips, read_rows
from vivit.run import Run
from vivit.settings import Config
from vivit.tasks import TASKS, Classify, MultiLabel, TaskKind, make_objective, make_task
from vivit.tasks.multi_label import average_precision
from vivit.tasks.settings import TaskSettings
from vivit.train import train

HEADS = {"noun": 3, "verb": 2}
LOGITS = jax.random.normal(jax.random.key(0), (6, 5))
NUMBERS = np.array([[0, 1], [1, 0], [2, 1], [0, 0], [1, 1], [2, 0]], np.int32)
SEVERAL = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1],
                    [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.uint8)  # fmt: skip


def batch_of(labels, **more):
    return {"labels": jnp.asarray(labels), "valid": jnp.array([1, 1, 1, 1, 1, 0.0]), **more}


def test_two_heads_are_two_tasks():
    """Loss, gradient and metrics of two heads are those of one head each; both at once is their
    product."""
    both, batch = Classify(HEADS), batch_of(NUMBERS)
    labels = jnp.asarray(NUMBERS)
    parts = [(LOGITS[:, :3], labels[:, 0], 3), (LOGITS[:, 3:], labels[:, 1], 2)]
    single = [Classify({"x": n}) for *_, n in parts]
    losses = both.losses(LOGITS, batch, label_smoothing=0.1)
    of_both = means([both.sums(losses, LOGITS, batch)])
    hits = []
    for task, (logits, labels, _), name in zip(single, parts, HEADS, strict=True):
        alone = batch_of(labels)
        of_one = means([task.sums(task.losses(logits, alone, label_smoothing=0.1), logits, alone)])
        for key, value in of_one.items():
            assert of_both[f"{name}_{key}"] == pytest.approx(value, rel=1e-6)
        hits.append(np.asarray(task.head_metrics(logits, labels)["top1"]))
    assert of_both["loss"] == pytest.approx((of_both["noun_loss"] + of_both["verb_loss"]) / 2)
    assert of_both["joint_top1"] == pytest.approx((hits[0] * hits[1])[:5].mean())
    assert 0 < of_both["joint_top1"] < min(of_both["noun_top1"], of_both["verb_top1"])
    gradient = jax.grad(lambda x: sum(both.losses(x, batch)).sum())(LOGITS)
    expected = [jax.grad(lambda x, y=y: cross_entropy(x, y).sum())(x) for x, y, _ in parts]
    np.testing.assert_allclose(gradient, jnp.concatenate(expected, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "labels"), [(Classify(HEADS), NUMBERS), (MultiLabel(HEADS), SEVERAL)]
)
def test_the_loss_of_mixed_clips_is_the_mixture_of_losses(task, labels):
    weight = jnp.linspace(0, 1, 6)
    mixed = batch_of(labels, other_labels=jnp.asarray(labels[::-1]), label_weight=weight)
    one, other = task.losses(LOGITS, batch_of(labels)), task.losses(LOGITS, batch_of(labels[::-1]))
    for found, a, b in zip(task.losses(LOGITS, mixed), one, other, strict=True):
        np.testing.assert_allclose(found, weight * a + (1 - weight) * b, rtol=1e-6)


def test_the_loss_of_several_classes_by_hand():
    task, smoothing = MultiLabel({"noun": 5}), 0.2
    (found,) = task.losses(LOGITS, batch_of(SEVERAL), label_smoothing=smoothing)
    p = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    wanted = SEVERAL * (1 - smoothing) + smoothing / 2
    expected = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    on_host = task.head_scores(SEVERAL, np.asarray(LOGITS))
    np.testing.assert_allclose(on_host.probabilities, p, rtol=1e-6)


def test_the_most_probable_class_is_one_of_the_clips():
    logits = jnp.array([[3.0, 1, 2], [1, 3, 2], [2, 2, 1], [0, 0, 0], [jnp.nan, 5, 0]])
    targets = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], np.uint8)
    assert hits_any(logits, jnp.asarray(targets)).tolist() == [1, 0, 0, 0, 0]
    scores = MultiLabel({"x": 3}).head_scores(targets, np.asarray(logits))
    assert scores.right.tolist() == [1, 0, 0, 0, 0]


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for ties in (False, True):
        target, score = rng.integers(0, 2, (40, 5)), rng.normal(size=(40, 5))
        score = score.round() if ties else score
        scores = MultiLabel({"x": 5}).head_scores(target.astype(np.uint8), score)
        for average, name in (("macro", "mAP"), ("micro", "mAP_micro")):
            expected = average_precision_score(target, score, average=average)
            assert scores.metrics[name] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(average_precision(np.zeros(4), np.arange(4.0)))
    assert np.isnan(average_precision(np.ones(4), np.array([0, 1, np.nan, 2])))
    target[:, 2] = 0  # a class that no clip has does not count
    scores = MultiLabel({"x": 5}).head_scores(target.astype(np.uint8), score)
    rest = average_precision_score(np.delete(target, 2, 1), np.delete(score, 2, 1))
    assert scores.metrics["mAP"] == pytest.approx(rest, rel=1e-12)
    assert scores.per_class("abcde")[2] == {"class": "c", "clips": 0, "average_precision": None}


@pytest.mark.parametrize("task", [Classify(HEADS), MultiLabel(HEADS), Classify({"x": 5})])
def test_the_mean_of_probabilities(task):
    views = jax.random.normal(jax.random.key(1), (4, 6, 5))
    expected = task.probabilities(views).mean(axis=0)
    np.testing.assert_allclose(task.probabilities(task.mean_probabilities(views)), expected, 1e-5)
    on_host = task.mean_probabilities(np.asarray(views))
    np.testing.assert_allclose(task.probabilities(on_host), expected, 1e-5)
    certain = task.mean_probabilities(jnp.full((3, 2, 5), 200.0).at[..., 0].set(-200.0))
    assert np.isfinite(certain).all()


def test_labels_are_encoded_decoded_and_mirrored():
    flips = ((1, 0, 2), (0, 1))
    numbers, several = Classify(HEADS), MultiLabel(HEADS)
    clip = {"verb": 1, "noun": 0, "other": 7}
    assert numbers.encode(clip).tolist() == [0, 1]
    assert numbers.decode(numbers.encode(clip)) == {"noun": (0,), "verb": (1,)}
    np.testing.assert_array_equal(
        numbers.mirrored(jnp.asarray(NUMBERS), flips)[:, 0], [1, 0, 2, 1, 0, 2]
    )
    clip = {"verb": (), "noun": np.array([0, 2])}
    assert several.encode(clip).tolist() == [1, 0, 1, 0, 0]
    assert several.decode(several.encode(clip)) == {"noun": (0, 2), "verb": ()}
    mirrored = several.mirrored(jnp.asarray(several.encode(clip))[None], flips)
    assert several.decode(np.asarray(mirrored)[0]) == {"noun": (1, 2), "verb": ()}
    one_way = several.mirrored(jnp.asarray(SEVERAL), ((1, 0, 0), (0, 1)))  # not all in pairs
    assert several.decode(np.asarray(one_way)[0])["noun"] == (0, 1)
    with pytest.raises(ValueError, match=r"noun \[-1\]: class numbers begin with 0"):
        several.encode({"noun": (-1,), "verb": ()})
    assert Classify({"x": 3}).encode({"x": 2}).shape == ()


def split_of(task, *, several=False, unlabelled=0):
    classes = {
        "noun": Classes(("left", "right", "up"), {"left": "right", "right": "left"}, several),
        "verb": Classes(("a", "b"), several=several),
    }
    reader = WholeClips((), (1, 8, 8, 3))
    return Split(reader, classes, (8, 8), 8, "train", "x", "", "", {"noun": unlabelled}, task)


@pytest.mark.parametrize(
    ("task", "labels"), [(Classify(HEADS), NUMBERS), (MultiLabel(HEADS), SEVERAL)]
)
def test_flipped_clips_have_mirrored_labels(task, labels):
    split = split_of(task)
    augment = make_augmentation(AugmentSettings(flip=0.5), split, (8, 8))
    batch = {
        "clips": jnp.zeros((6, 1, 8, 8, 3), jnp.uint8).at[:, :, :, 0].set(255),
        "labels": jnp.asarray(labels),
        "valid": jnp.ones(6),
        "indices": jnp.arange(6, dtype=jnp.uint32),
        "extents": jnp.full((6, 2), 8),
    }
    out = augment(batch, jax.random.key(0), {})
    flipped = np.asarray(out["clips"])[:, 0, 0, -1, 0] > 0
    assert 0 < flipped.sum() < 6
    mirrored = np.asarray(task.mirrored(batch["labels"], split.flip_labels))
    expected = np.where(flipped[:, None], mirrored, labels)
    np.testing.assert_array_equal(out["labels"], expected)


# --- whole runs ---


def two_heads(config):
    return replace(
        config,
        task=TaskSettings(heads={"motion": 8, "digit": 10}),
        data=replace(config.data, label=""),
        model=replace(config.model, classes=18),
    )


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory, tiny_config):
    workdir = tmp_path_factory.mktemp("runs") / "two"
    train(two_heads(tiny_config("--config.augment.mixup=0.2")), workdir)
    return workdir


@pytest.fixture(scope="module")
def run_of_several(tmp_path_factory, tiny_config):
    root = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "SPLITS", {"train": 32, "validation": 16, "test": 21})
        prepare_registered("several_digits", root)
    config = tiny_config("--config.task.name=multi_label", "--config.model.classes=10")
    data = replace(config.data, name="several_digits", label="digits", root=str(root))
    train(replace(config, data=data), root / "run")
    return root / "run"


def test_a_run_of_two_heads(run_of_two, capsys):
    run = Run(run_of_two, "latest")
    assert run.config.heads == {"digit": 10, "motion": 8}  # in the order of the names
    rows = [x for x in run.metrics if x["split"] == "validation"]
    assert {"loss", "joint_top1", "digit_top1", "digit_top5", "motion_loss"} <= set(rows[0])
    path = evaluate(run_of_two, checkpoint="latest", logits=True)
    result = json.loads(path.read_text())
    parts = parts_by_head(result)
    assert list(parts) == ["digit", "motion"]
    clips = read_clips(path.with_suffix(".parquet"), run.task)
    joint = np.ones(21, bool)
    for label, part in parts.items():
        head = clips.heads[label]
        np.testing.assert_array_equal(part["confusion"], head.confusion)
        assert result[f"{label}_top1"] == pytest.approx(np.trace(head.confusion) / 21)
        recalls = [x["recall"] for x in part["per_class"] if x["clips"]]
        assert part["mean_class_accuracy"] == pytest.approx(np.mean(recalls))
        assert sum(x["clips"] for x in part["per_class"]) == 21
        joint &= head.right.astype(bool)
    assert result["joint_top1"] == pytest.approx(joint.mean())
    assert result["loss"] == pytest.approx(clips.losses.mean(), rel=1e-5)
    labels = [run.data.labels_of(i) for i in range(21)]
    row = read_rows(path.with_suffix(".parquet"))[4]
    assert int(row["digit_label"]) == labels[4]["digit"]
    assert row["motion_label"] == moving_digits.MOTIONS[labels[4]["motion"]]
    images, encoded = run.clips([4])
    assert run.titles(encoded) == [f"{row['digit_label']}, {row['motion_label']}"]
    found = run.predict(images)
    (guess,) = run.guesses(np.log(found))
    assert re.fullmatch(r"\d \d+\.\d%, \w+ \d+\.\d%", guess)
    assert guess.startswith(f"{found[0, :10].argmax()} {found[0, :10].max():.1%}, ")
    np.testing.assert_allclose([found[:, :10].sum(), found[:, 10:].sum()], 1, rtol=1e-5)
    page = write_report([run_of_two], checkpoint="latest").read_text()
    for title in ("Mistakes of digit", "Confusion of motion", "Classes of motion", "joint top-1"):
        assert title in page


def test_the_best_checkpoint_of_two_heads_is_right_about_both(run_of_two):
    run = Run(run_of_two)
    best = max(x["joint_top1"] for x in run.metrics if x["split"] == "validation")
    row = next(x for x in run.metrics if x["split"] == "validation" and x["step"] == run.step)
    assert row["joint_top1"] == best


def test_a_run_of_several_classes(run_of_several, run_of_two, tmp_path):
    run = Run(run_of_several, "latest")
    assert "mAP" in next(x for x in run.metrics if x["split"] == "validation")
    path = evaluate(run_of_several, checkpoint="latest", logits=True)
    result = json.loads(path.read_text())
    clips = read_clips(path.with_suffix(".parquet"), run.task)
    target = np.stack([run.task.encode(run.data.labels_of(i)) for i in range(21)])
    np.testing.assert_array_equal(clips.labels, target)
    assert set(target.sum(axis=1)) <= {1, 2, 3}
    assert len(set(target.sum(axis=1))) > 1
    micro = average_precision_score(target, clips.logits, average="micro")
    assert result["mAP_micro"] == pytest.approx(micro, rel=1e-5)
    assert result["loss"] == pytest.approx(clips.losses.mean(), rel=1e-5)
    rows = read_rows(path.with_suffix(".parquet"))
    assert rows[2]["label"] == [str(i) for i in np.flatnonzero(target[2])]
    page = write_report([run_of_several], checkpoint="latest").read_text()
    assert "average precision" in page
    assert "Confusion" not in page
    copy = tmp_path / "copy"
    copy.symlink_to(run_of_several)
    with pytest.raises(ValueError, match="not the data, task, label or classes of"):
        evaluate_ensemble([str(run_of_several), str(run_of_two)], checkpoint="latest")
    ensemble = evaluate_ensemble([str(run_of_several), str(copy)], checkpoint="latest")["ensemble"]
    np.testing.assert_allclose(ensemble.logits, clips.logits, atol=1e-5)


def test_weights_of_two_heads(run_of_two, tmp_path):
    run = Run(run_of_two, "latest")
    loaded = pretrained.load(run_of_two, checkpoint="latest")
    assert loaded.report.groups == {"digit": 10, "motion": 8}
    digit = pretrained.load(run_of_two, checkpoint="latest", head="digit")
    kernel = loaded.params["head"]["kernel"]
    np.testing.assert_array_equal(digit.params["head"]["kernel"], kernel[:, :10])
    report = loaded.report
    folder = pretrained.export(
        tmp_path / "out", loaded.model_config, loaded.params, labels=report.labels,
        heads=report.groups,
    )  # fmt: skip
    predictor = predictor_of_weights(str(folder))
    assert isinstance(predictor.task, Classify)
    assert [head[:2] for head in predictor.task.heads] == [("digit", 10), ("motion", 8)]
    assert predictor.class_names == run.class_names == (*"0123456789", *moving_digits.MOTIONS)
    printed = Prediction("a.mp4", None, run.predict(run.clips([0])[0])[0])
    with redirect_stdout(StringIO()) as out:
        for kind in ("table", "json", "csv"):
            Printer(kind, run.task, run.class_names, 2)(printed)
    table, line, head, row = out.getvalue().splitlines()
    assert re.fullmatch(r"a.mp4  digit: \d \S+%, \d \S+%; motion: \w+ \S+%, \w+ \S+%", table)
    assert [len(x) for x in json.loads(line)["heads"].values()] == [2, 2]
    assert head.split(",")[2:6] == ["digit_class_1", "digit_p_1", "digit_class_2", "digit_p_2"]
    assert len(row.split(",")) == len(head.split(",")) == 10


def test_weights_of_several_classes_predict_by_sigmoids(run_of_several, tmp_path):
    loaded = pretrained.load(run_of_several, checkpoint="latest")
    assert isinstance(predictor_of_weights(str(run_of_several)).task, MultiLabel)
    report, out = loaded.report, tmp_path / "out"
    written = {"labels": report.labels, "task": report.task}
    folder = pretrained.export(out, loaded.model_config, loaded.params, **written)
    assert isinstance(predictor_of_weights(str(folder)).task, MultiLabel)
    with pytest.raises(ValueError, match="task 'multi_label': its head is a softmax"):
        pretrained.export(
            tmp_path / "hf", loaded.model_config, loaded.params, to="hf_vivit", **written
        )


def test_heads_of_several_classes_are_compared_by_their_mean():
    task = MultiLabel(HEADS)
    scores = ClipScores(np.arange(6), SEVERAL, np.asarray(LOGITS), task)
    assert task.best == "mean_mAP" == next(iter(task.columns()))
    metrics = scores.metrics
    assert metrics["mean_mAP"] == pytest.approx((metrics["noun_mAP"] + metrics["verb_mAP"]) / 2)
    assert metrics["loss"] == pytest.approx((metrics["noun_loss"] + metrics["verb_loss"]) / 2)


def test_an_unsure_model_is_right_about_no_class():
    scores = Classify({"x": 3}).head_scores(np.array([0, 1, 2, 0]), np.zeros((4, 3), np.float32))
    assert scores.metrics == {"top1": 0, "top5": 1, "mean_class_accuracy": 0}


def test_the_loss_of_a_users_task_is_the_one_that_is_kept():
    class Doubled(Classify):
        def head_loss(self, logits, target, *, label_smoothing):
            return 2 * super().head_loss(logits, target, label_smoothing=label_smoothing)

    scores = lambda task: ClipScores(np.arange(6), NUMBERS, np.asarray(LOGITS), task(HEADS))
    once, twice = scores(Classify).metrics, scores(Doubled).metrics
    for name in ("loss", "noun_loss"):
        assert twice[name] == pytest.approx(2 * once[name], rel=1e-6)


def test_collected_runs_of_two_heads_have_all_their_scores(run_of_two):
    evaluate(run_of_two)  # of the best checkpoint
    (row,), problems = collect([run_of_two])
    assert problems == []
    assert list(row["scores"])[:2] == ["joint top-1", "digit top-1"]
    assert "| test joint top-1 (%) |" in markdown([row])


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"heads": {"motion": 8, "digit": 10}}}, "set data.label='', or task.heads={}"),
        ({"task": {"heads": {"motion": 8, "digit": 10}}, "data": {"label": ""}},
         "task.heads needs model.classes=18, the sum of its heads, not 8"),
        ({"task": {"heads": {"motion": 8}}}, "set data.label='motion' for one label"),
        ({"task": {"heads": {"raw": 8}}}, "metrics of another kind begin with raw_"),
        ({"task": {"heads": {"motion": 0}}}, "motion=0 must be whole numbers of classes"),
        ({"augment": {"brightness": float("nan")}}, "brightness=nan"),
        ({"augment": {"mixup": float("nan")}}, "mixup=nan"),
        ({"train": {"label_smoothing": float("nan")}}, "label_smoothing=nan"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_itself(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("{", r"\{")):
        as_config(changes)


def test_labels_that_the_data_lack(data_root):
    data = DataSettings("moving_digits", str(data_root), "")
    with pytest.raises(
        ValueError, match="moving_digits has no label 'colour'; it has: motion, dig"
    ):
        open_split(data, "train", Classify({"colour": 3, "motion": 8}))
    split = open_split(data, "train", MultiLabel({"motion": 8}))  # one class each: may be trained
    labels = split.labels_of(1)
    assert split.task.decode(split.task.encode(labels)) == {"motion": (labels["motion"],)}


def test_a_head_of_another_size(tiny_config, tmp_path):
    config = two_heads(tiny_config())
    other = replace(
        config,
        task=TaskSettings(heads={"motion": 8, "digit": 9}),
        model=replace(config.model, classes=17),
    )
    with pytest.raises(ValueError, match="label 'digit' needs task.heads: digit=10, not 9"):
        train(other, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_a_task_that_cannot_do_what_is_asked(monkeypatch):
    class Unmixed(Classify):
        mixes = False

    monkeypatch.setattr(TASKS, "_items", {**TASKS._items, "unmixed": TaskKind(Unmixed)})
    split = split_of(make_task("unmixed", HEADS))
    with pytest.raises(ValueError, match="mixup=0.2 and cutmix=0: the loss of task Unmixed is not"):
        make_augmentation(AugmentSettings(mixup=0.2), split, (8, 8))
    with pytest.raises(
        ValueError, match="unknown task 'regress'; known: classify, jepa, mae, multi_label"
    ):
        make_task("regress", HEADS)
    with pytest.raises(ValueError, match="name the label to train on, or several in task.heads"):
        make_task("classify", {})
    with pytest.raises(ValueError, match="predicts no labels, so there is nothing to score"):
        make_task("mae", {})
    with pytest.raises(ValueError, match="learns from clips alone: set data.label='', task.heads"):
        make_objective("mae", HEADS)


def test_config_files_name_heads(tmp_path):
    file = tmp_path / "two.py"
    file.write_text(
        "from configs import moving_digits\n\n\ndef get_config():\n"
        "    config = moving_digits.get_config()\n"
        "    config.task.heads = {'motion': 8, 'digit': 10}\n"
        "    config.data.label = ''\n    config.model.classes = 18\n    return config\n"
    )
    assert read_config(str(file)).heads == {"digit": 10, "motion": 8}
    others = "--config.task.heads={'digit': 10, 'colour': 8}"
    assert read_config(str(file), [others]).heads == {"colour": 8, "digit": 10}
    with pytest.raises(ValueError, match=r"--config.task.heads=18: write a mapping, like "):
        read_config(str(file), ["--config.task.heads=18"])
    assert Config().heads == {"motion": 8}
    file.write_text("from ml_collections import ConfigDict\n\n\ndef get_config():\n"
                    "    return ConfigDict({'data': {'label': ''}, 'model': {'classes': 18, "
                    "'clip': (16, 32, 32)}})\n")  # fmt: skip
    assert read_config(str(file), [others]).heads == {"colour": 8, "digit": 10}
    with pytest.raises(ValueError, match="write a mapping, like"):
        read_config(str(file), ["--config.task.heads={[1]: 2}"])

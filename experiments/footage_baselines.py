"""python -m experiments.footage_baselines MANIFEST: what simple features say of a footage's labels.

Logistic regression on how much frames differ, without any flow: what a video model has to beat.
Accuracies are means over the classes. Clips that are cut from the same film overlap, so the test
clips count for fewer than they are.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.collect import table_row
from vivit.cli import make_parser, run_command
from vivit.data.manifest import read_manifest
from vivit.data.settings import DataSettings
from vivit.data.sources import open_split
from vivit.data.split import Split

LEAST = 0.1  # grey levels, below all noise: a film that stands still has a logarithm too


def difference(frames: np.ndarray, lag: int = 1) -> np.ndarray:
    """Returns the mean absolute difference of grey frames [F, H, W] that are `lag` apart."""
    return np.abs(frames[lag:] - frames[:-lag]).mean(axis=(1, 2))


def by_lag(frames: np.ndarray) -> list[float]:
    """How much frames differ, and how much more where they are further apart."""
    first, *others = (np.log(difference(frames, lag).mean() + LEAST) for lag in (1, 2, 4))
    return [first, *(other - first for other in others)]


# Name -> a function of the grey frames [F, H, W] of a clip, in 0 .. 255, that gives features.
FEATURES: dict[str, Callable[[np.ndarray], list[float]]] = {
    "mean difference of frames": lambda x: [np.log(difference(x).mean() + LEAST)],
    "motion energy": lambda x: [np.log(((x[1:] - x[:-1]) ** 2).mean() + LEAST)],
    "differences by lag": by_lag,
    "differences over time": lambda x: np.log(difference(x) + LEAST).tolist(),
}


def features_of(split: Split) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the features of all clips of a split by name, [clips, features], and the classes."""
    found: dict[str, list[list[float]]] = {name: [] for name in FEATURES}
    (label,) = split.task.labels
    for i in range(len(split)):
        video = split.reader.open(i)
        grey = video.read(np.arange(len(video.times)), None).mean(axis=-1)
        for name, make in FEATURES.items():
            found[name].append(make(grey))
    classes = [split.reader.label(i, label) for i in range(len(split))]
    return {name: np.array(rows) for name, rows in found.items()}, np.array(classes)


def compare(manifest: str, label: str) -> list[tuple[str, float, float]]:
    """Returns (features, accuracy on the training clips, on the test clips)."""
    settings = DataSettings(manifest, str(Path(manifest).parent), label)
    (train, known), (test, wanted) = (
        features_of(open_split(settings, s)) for s in ("train", "test")
    )
    rows = []
    for name in FEATURES:
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        model.fit(train[name], known)
        score = lambda x, y, model=model: float(balanced_accuracy_score(y, model.predict(x)))
        rows.append((name, score(train[name], known), score(test[name], wanted)))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "experiments.footage_baselines",
        __doc__,
        "python -m experiments.footage_baselines data/real_video/3/real_video.csv",
        "python -m experiments.footage_baselines films.csv --labels speed",
    )
    parser.add_argument("manifest", help="as experiments.real_video writes it")
    parser.add_argument("--labels", nargs="+", default=[], help="of the manifest (default: all)")
    arguments = parser.parse_args(argv)
    print(table_row(["label", "features", "training (%)", "test (%)"]))
    print(table_row(["---", "---", "---:", "---:"]))
    for label in arguments.labels or list(read_manifest(arguments.manifest).classes):
        for name, train, test in compare(arguments.manifest, label):
            print(table_row([label, name, f"{100 * train:.1f}", f"{100 * test:.1f}"]))


if __name__ == "__main__":
    run_command(main)

"""python -m experiments.footage_baselines MANIFEST: what simple features say of a footage's labels.

Logistic regression on how much frames differ, without any flow: what a video model has to beat.
Accuracies are means over the classes. Clips that are cut from the same film overlap, so the test
clips count for fewer than they are.
"""

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.collect import table_row
from experiments.real_video import read_film
from vivit.cli import make_parser, run_command

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


def features_of(manifest: Path, split: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the features of a split's clips by name, [clips, features], and label -> classes."""
    found: dict[str, list[list[float]]] = {name: [] for name in FEATURES}
    with open(manifest, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("split") == split]
    for row in rows:
        grey = np.array(list(read_film(manifest.parent / row.pop("path")))).mean(axis=-1)
        for name, make in FEATURES.items():
            found[name].append(make(grey))
    classes = {label: np.array([row[label] for row in rows]) for label in rows[0]}
    return {name: np.array(of) for name, of in found.items()}, classes


def compare(manifest: Path) -> list[tuple[str, str, float, float]]:
    """Returns (label, features, accuracy on the training clips, on the test clips)."""
    (train, known), (test, wanted) = (features_of(manifest, split) for split in ("train", "test"))
    rows = []
    for label, name in itertools.product(known, FEATURES):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        model.fit(train[name], known[label])
        score = lambda x, y, model=model: float(balanced_accuracy_score(y, model.predict(x)))
        rows.append(
            (label, name, score(train[name], known[label]), score(test[name], wanted[label]))
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "experiments.footage_baselines",
        __doc__,
        "python -m experiments.footage_baselines data/real_video/3_films/real_video.csv",
        "python -m experiments.footage_baselines data/real_video/4_films/real_video.csv > table.md",
    )
    parser.add_argument("manifest", type=Path, help="as experiments.real_video writes it")
    manifest = parser.parse_args(argv).manifest
    if not manifest.is_file():
        raise ValueError(
            f"no manifest {str(manifest)!r}; python -m experiments.real_video cuts one"
        )
    print(table_row(["label", "features", "training (%)", "test (%)"]))
    print(table_row(["---", "---", "---:", "---:"]))
    for label, name, train, test in compare(manifest):
        print(table_row([label, name, f"{100 * train:.1f}", f"{100 * test:.1f}"]))


if __name__ == "__main__":
    run_command(main)

"""Probes: what frozen features of clips say of a label. Those here need no JAX."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from vivit.registry import OptionRegistry, Options, options_of

Scores = Float[np.ndarray, "N classes"]


class Features(NamedTuple):
    """Features of clips in V views each, and the clips' classes.

    values: what a head would get. tokens: of the encoder, [N, V, T, S, D], for the probes that need
    them.
    """

    values: Float[np.ndarray, "N V D"]
    classes: Int[np.ndarray, " N"]
    tokens: Shaped[np.ndarray, "N V T S k"] | None = None


class Rows(NamedTuple):
    """Features of single views."""

    values: Float[np.ndarray, "N D"]
    tokens: Shaped[np.ndarray, "N T S k"] | None


class Training(NamedTuple):
    """What a probe is fitted to: one view of each clip. count: of the classes."""

    rows: Rows
    classes: Int[np.ndarray, " N"]
    count: int


@dataclass(frozen=True)
class ProbeKind:
    """A registered probe.

    scores: (training clips, rows to score, **options) -> how each was fitted, in words -> scores.
        Of the several ways the best on validation counts.
    tokens: whether it needs the tokens.
    """

    name: str
    scores: Callable[..., dict[str, Scores]]
    tokens: bool
    options: Options = field(default_factory=Options)


PROBES: OptionRegistry[ProbeKind] = OptionRegistry("probe")


def probe_kind(name: str, *, tokens: bool = False):
    """Returns a decorator that registers a function as a probe; see `ProbeKind`.

    Its keyword-only arguments are options, each with a default.
    """

    def register(scores):
        PROBES.add(name, ProbeKind(name, scores, tokens, options_of(scores)))
        return scores

    return register


@probe_kind("linear")
def linear(train: Training, others: Rows) -> dict[str, Scores]:
    """Ridge regression of one-hot targets on standardised features, by its penalty."""
    values = train.rows.values
    mean, std = values.mean(axis=0), values.std(axis=0) + 1e-6
    x, others_x = (values - mean) / std, (others.values - mean) / std
    targets = np.eye(train.count)[train.classes]
    eigenvalues, vectors = np.linalg.eigh(x.T @ x)
    rotated = vectors.T @ (x.T @ (targets - targets.mean(axis=0)))
    found = {}
    for penalty in 10.0 ** np.arange(-1, 6):
        weights = vectors @ (rotated / (np.maximum(eigenvalues, 0) + penalty)[:, None])
        found[f"penalty {penalty:g}"] = others_x @ weights + targets.mean(axis=0)
    return found


@probe_kind("knn")
def nearest(train: Training, others: Rows) -> dict[str, Scores]:
    """The vote of the k nearest by cosine, weighted by exp(cosine / 0.07) as DINO's (2104.14294),
    by k."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    known, targets = unit(train.rows.values), np.eye(train.count)[train.classes]
    votes = []
    for part in np.array_split(unit(others.values), max(1, len(others.values) // 1024)):
        cosines = part @ known.T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :50]
        near = np.take_along_axis(cosines, order, axis=1)
        votes.append(targets[order] * np.exp(near / 0.07)[..., None])
    cast = np.concatenate(votes)
    return {f"k {k}": cast[:, :k].sum(axis=1) for k in (1, 5, 10, 20, 50)}


class Probe(NamedTuple):
    """The accuracies of a probe.

    option: of the ways to fit it, the one with the best accuracy on validation. validation, test:
    its accuracies. best_on_test: the best of all ways on the test split, as V-JEPA 2 reports; it
    has seen the test split.
    """

    option: str
    validation: float
    test: float
    best_on_test: float


def fit(name: str, train: Features, validation: Features, test: Features) -> Probe:
    """Returns a probe's accuracies: the option is chosen on validation, and test is read once.

    Fitted to the first view of each clip; scores are averaged over views.
    """
    kind = PROBES[name]
    count = 1 + max(int(part.classes.max(initial=0)) for part in (train, validation, test))
    first = Rows(train.values[:, 0], train.tokens if train.tokens is None else train.tokens[:, 0])
    training = Training(first, train.classes, count)
    right: list[dict[str, float]] = []
    rows = [_rows(part) for part in (validation, test)]
    tokens = None
    if kind.tokens:
        tokens = np.concatenate([x.tokens for x in rows])  # pyright: ignore
    both = Rows(np.concatenate([x.values for x in rows]), tokens)
    found = kind.scores(training, both, **kind.options)
    cut = len(rows[0].values)
    for part, numbers in ((validation, slice(0, cut)), (test, slice(cut, None))):
        views = part.values.shape[1]
        by_view = {k: v[numbers].reshape(-1, views, count) for k, v in found.items()}
        guesses = {k: v.mean(axis=1).argmax(axis=1) for k, v in by_view.items()}
        right.append({k: float((v == part.classes).mean()) for k, v in guesses.items()})
    on_validation, on_test = right
    best = max(on_validation, key=lambda option: on_validation[option])
    return Probe(best, on_validation[best], on_test[best], max(on_test.values()))


def _rows(features: Features) -> Rows:
    tokens = features.tokens
    if tokens is not None:
        tokens = tokens.reshape(-1, *tokens.shape[2:])
    return Rows(features.values.reshape(-1, features.values.shape[2]), tokens)

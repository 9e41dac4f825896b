"""Probes: what frozen features of clips say of a label. Those here need no JAX."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from vivit.registry import OptionRegistry, Options, options_of

Scores = Float[np.ndarray, "N classes"]


@runtime_checkable
class Tokens(Protocol):
    """The tokens of clips in V views each. shape: (N, V, T, S, D)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def batches(
        self, order: Int[np.ndarray, " M"], size: int
    ) -> Iterator[Shaped[np.ndarray, "n V T S k"]]:
        """Yields the tokens of these clips, `size` clips at a time."""
        ...


@dataclass(frozen=True)
class KeptTokens:
    """Tokens in memory."""

    values: Shaped[np.ndarray, "N V T S k"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def batches(self, order: np.ndarray, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(order), size):
            yield self.values[order[start : start + size]]


class Features(NamedTuple):
    """Features of clips in V views each, and the clips' classes.

    values: what a head would get. tokens: of the encoder, for the probes that need them.
    """

    values: Float[np.ndarray, "N V D"]
    classes: Int[np.ndarray, " N"]
    tokens: Tokens | None = None


class Rows(NamedTuple):
    """Features of single views; tokens: those of these rows, one after another."""

    values: Float[np.ndarray, "N D"]
    tokens: tuple[Tokens, ...] = ()


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
    first = Rows(train.values[:, 0], _tokens(train))
    training = Training(first, train.classes, count)
    right: list[dict[str, float]] = []
    values = [x.values.reshape(-1, x.values.shape[2]) for x in (validation, test)]
    both = Rows(np.concatenate(values), _tokens(validation, test))
    found = kind.scores(training, both, **kind.options)
    cut = len(values[0])
    for part, numbers in ((validation, slice(0, cut)), (test, slice(cut, None))):
        views = part.values.shape[1]
        by_view = {k: v[numbers].reshape(-1, views, count) for k, v in found.items()}
        guesses = {k: v.mean(axis=1).argmax(axis=1) for k, v in by_view.items()}
        right.append({k: float((v == part.classes).mean()) for k, v in guesses.items()})
    on_validation, on_test = right
    best = max(on_validation, key=lambda option: on_validation[option])
    return Probe(best, on_validation[best], on_test[best], max(on_test.values()))


def _tokens(*parts: Features) -> tuple[Tokens, ...]:
    return tuple(part.tokens for part in parts if part.tokens is not None)

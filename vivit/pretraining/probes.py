"""Probes: what frozen features of clips say of a label. No JAX."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vivit.registry import Registry

Rows = Float[np.ndarray, "N D"]
Classes = Int[np.ndarray, " N"]


class Features(NamedTuple):
    """What the head would get of each clip, and the clips' classes."""

    values: Rows
    classes: Classes

    def part(self, numbers: slice) -> "Features":
        return Features(self.values[numbers], self.classes[numbers])


# Name -> (training features, other features) -> option -> the classes of the others.
PROBES: Registry[Callable[[Features, Rows], dict[float, Classes]]] = Registry("probe")


@PROBES.register("linear")
def linear(train: Features, others: Rows) -> dict[float, Classes]:
    """Ridge regression of one-hot targets on standardised features, by its penalty."""
    mean, std = train.values.mean(axis=0), train.values.std(axis=0) + 1e-6
    x, others = (train.values - mean) / std, (others - mean) / std
    targets = np.eye(train.classes.max() + 1)[train.classes]
    values, vectors = np.linalg.eigh(x.T @ x)
    rotated = vectors.T @ (x.T @ (targets - targets.mean(axis=0)))
    found = {}
    for penalty in 10.0 ** np.arange(-1, 6):
        weights = vectors @ (rotated / (np.maximum(values, 0) + penalty)[:, None])
        found[float(penalty)] = (others @ weights + targets.mean(axis=0)).argmax(axis=1)
    return found


@PROBES.register("knn")
def nearest(train: Features, others: Rows) -> dict[float, Classes]:
    """The vote of the k nearest by cosine, weighted by exp(cosine / 0.07) as DINO's (2104.14294),
    by k."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosines = unit(others) @ unit(train.values).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :50]
    near = np.take_along_axis(cosines, order, axis=1)
    votes = np.eye(train.classes.max() + 1)[train.classes[order]] * np.exp(near / 0.07)[..., None]
    return {float(k): votes[:, :k].sum(axis=1).argmax(axis=1) for k in (1, 5, 10, 20, 50)}


class Probe(NamedTuple):
    """option: the one with the best accuracy on validation. validation, test: accuracies."""

    option: float
    validation: float
    test: float


def fit(name: str, train: Features, validation: Features, test: Features) -> Probe:
    """Returns a probe's accuracies: the option is chosen on validation, and test is read once."""
    found = PROBES[name](train, np.concatenate([validation.values, test.values]))
    cut = len(validation.values)
    scores = {k: float((v[:cut] == validation.classes).mean()) for k, v in found.items()}
    best = max(scores, key=lambda option: scores[option])
    return Probe(best, scores[best], float((found[best][cut:] == test.classes).mean()))

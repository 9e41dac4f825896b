"""Optimisers by name, each with its own options.

All that compute something over a whole array (its norm, its factors) do so over each layer of a
scanned model, so that scanned and unrolled models train alike. Weight decay is that of AdamW: it is
scaled by the learning rate alone, and shrinks kernels only; SGD's is L2 regularisation. An update
takes `decay_factor`, by which the decay is multiplied.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax
from optax import contrib

from vivit.registry import OptionRegistry, Options, options_of

# A leaf's path in a tree as text: "stage_0/norm/scale".
path_name = partial(jax.tree_util.keystr, simple=True, separator="/")
MUON_RMS = 0.2  # of an update; AdamW's is 0.2 to 0.4 (2502.16982, section 2.2)


@dataclass(frozen=True)
class Optimizer:
    """A registered optimiser: `make(**options)` is the transformation of clipped gradients to
    updates before the learning rate."""

    name: str
    make: Callable[..., optax.GradientTransformation]
    options: Options = field(default_factory=Options)

    def __call__(self) -> optax.GradientTransformation:
        return self.make(**self.options)


OPTIMIZERS: OptionRegistry[Optimizer] = OptionRegistry("optimiser")


def optimizer(name: str):
    """Returns a decorator that registers a function as an optimiser.

    The function's keyword-only arguments are the optimiser's options, each with a default.
    """

    def register(make):
        OPTIMIZERS.add(name, Optimizer(name, make, options_of(make)))
        return make

    return register


@optimizer("adamw")
def adamw(
    *, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """AdamW (1711.05101): the decay is not scaled by the gradient's moments."""
    _check(b1=b1, b2=b2)
    return optax.chain(optax.scale_by_adam(b1, b2), _decay(weight_decay))


@optimizer("sgd")
def sgd(
    *, momentum: float = 0.9, weight_decay: float = 0.05, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with momentum, ViViT's (2103.15691, section 4.1), and L2 regularisation. nesterov: of
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013."""
    _check(momentum=momentum)
    return optax.chain(_decay(weight_decay), optax.trace(momentum, nesterov=nesterov))


@optimizer("lamb")
def lamb(
    *, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """LAMB (1904.00962, algorithm 2): AdamW's updates, each array's with the norm of the array."""
    _check(b1=b1, b2=b2)
    trust = each_layer(lambda _: optax.scale_by_trust_ratio())
    return optax.chain(optax.scale_by_adam(b1, b2, eps=1e-6), _decay(weight_decay), trust)


@optimizer("lion")
def lion(
    *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.5
) -> optax.GradientTransformation:
    """Lion (2302.06675): the sign of a momentum. It wants 3 to 10 times less lr than AdamW, and as
    much more weight decay (section 5)."""
    _check(b1=b1, b2=b2)
    return optax.chain(optax.scale_by_lion(b1, b2), _decay(weight_decay))


@optimizer("adafactor")
def adafactor(
    *, decay_rate: float = 0.8, scale_by_size: bool = True, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """Adafactor (1804.04235) without momentum: second moments of rows and columns, updates clipped
    to an RMS of 1. scale_by_size: whether lr is relative to each array's RMS (section 8)."""
    _check(decay_rate=decay_rate)
    parts = [optax.scale_by_factored_rms(decay_rate=decay_rate), optax.clip_by_block_rms(1.0)]
    if scale_by_size:
        parts.append(optax.scale_by_param_block_rms())
    return optax.chain(each_layer(lambda _: optax.chain(*parts)), _decay(weight_decay))


@optimizer("muon")
def muon(
    *, momentum: float = 0.95, b1: float = 0.9, b2: float = 0.95, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for the
    matrices of layers, with updates of AdamW's size (2502.16982), and AdamW with b1 and b2 for the
    rest."""
    _check(momentum=momentum, b1=b1, b2=b2)

    def orthogonal(path: str) -> optax.GradientTransformation:
        # Heads and their channels are one axis of the matrix.
        inputs, outputs = ((0, 1), (2,)) if path.endswith("/out/kernel") else ((0,), (1, 2))
        if "/mlp" in path:
            inputs, outputs = (0,), (1,)
        axes = contrib.MuonDimensionNumbers(inputs, outputs)
        without_momentum = contrib.scale_by_muon(beta=0.0, weight_dimension_numbers=axes)

        def update(x, _):
            side = max(math.prod(x.shape[i] for i in axes) for axes in (inputs, outputs))
            one = without_momentum.update(x, without_momentum.init(x))[0]
            return MUON_RMS * side**0.5 * one

        return optax.stateless(update)

    def which(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "matrix" if _is_matrix(path_name(path)) else "other", params
        )

    kinds: dict[Any, optax.GradientTransformation] = {
        "matrix": optax.chain(optax.trace(momentum, nesterov=True), each_layer(orthogonal)),
        "other": optax.scale_by_adam(b1, b2),
    }
    return optax.chain(optax.partition(kinds, which), _decay(weight_decay))


def _is_matrix(path: str) -> bool:
    """Returns whether a parameter is a matrix of a layer's attention or MLP."""
    return path.endswith("/kernel") and "/layer" in path


def each_layer(
    make: Callable[[str], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Returns what treats every array alone, by make(path): and each layer of a scanned model,
    which are one array, as an array of its own."""

    def of(path, function):
        call = getattr(make(path_name(path)), function)
        return jax.vmap(call) if "/layers/" in path_name(path) else call

    def init(params):
        return jax.tree_util.tree_map_with_path(lambda path, p: of(path, "init")(p), params)

    def update(updates, state, params=None):
        both = jax.tree_util.tree_map_with_path(
            lambda path, *leaves: of(path, "update")(*leaves), updates, state, params
        )
        structure = jax.tree.structure(updates)
        pairs = structure.flatten_up_to(both)
        return tuple(structure.unflatten([pair[i] for pair in pairs]) for i in range(2))

    return optax.GradientTransformation(init, update)


def decayed(params):
    """Returns True for what weight decay shrinks: kernels, not biases, norms, tokens, positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)


def _decay(weight_decay: float) -> optax.GradientTransformation:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"optim.name: {weight_decay=} is not a number of at least 0")

    def update(updates, state, params=None, *, decay_factor=1.0, **_):
        return jax.tree.map(
            lambda u, p: u + weight_decay * decay_factor * p, updates, params
        ), state

    init = lambda params: optax.EmptyState()
    return optax.masked(optax.GradientTransformationExtraArgs(init, update), decayed)


def _check(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"optim.name: {name}={rate} is not in [0, 1)")

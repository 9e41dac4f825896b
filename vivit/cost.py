"""What a model costs: parameters, tokens and multiply-adds, without running it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from vivit.model.network import Network
from vivit.tasks.objective import Objective


def count(model: Network) -> dict[str, int]:
    """Returns tokens, parameters and multiply-adds of a model; see the three functions below."""
    return {
        "tokens": count_tokens(model),
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model),
    }


def count_training(network: Network, task: Objective) -> dict[str, int]:
    """Returns what `count` does, and "training_multiply_adds": of a training step, for one clip.
    The backward pass has twice as many as the forward pass."""
    counts = count(network)
    training = 3 * counts["multiply_adds"] + task.more_multiply_adds(network)
    return {**counts, "training_multiply_adds": training}


def count_parameters(model: Network) -> int:
    """Returns how many numbers the parameters of a model are."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))


def count_tokens(model: Network) -> int:
    """Returns the tokens of the space-time grid, without class tokens and registers."""
    return math.prod(model.config.grid)


def count_multiply_adds(
    model: Network, method: str = "__call__", *, inputs: Sequence[Any] | None = None
) -> int:
    """Returns the multiply-adds of all matrix products in the forward pass of one clip.

    method: what is called, with inputs of these shapes; those of `example` if there are none.
    Norms, softmax and gelu are not counted; XLA's own count has them, and counts a multiply-add
    as two operations. The kernel is the dense one: the others compute the same products, and
    some pad them.
    """
    kernel = {"kernel": "dense"} if model.config.kernel.softmax else {}
    model = model.with_settings(remat="none", **kernel)
    forward = lambda params, *inputs: model.apply({"params": params}, *inputs, method=method)
    shapes = jax.eval_shape(model.example) if inputs is None else inputs
    return count_products(forward, abstract_params(model), *shapes)


def count_products(function: Callable, *shapes: Any) -> int:
    """Returns the multiply-adds of all matrix products of a function of arrays of these shapes."""
    return _products(jax.make_jaxpr(function)(*shapes).jaxpr)


def abstract_params(model: Network) -> Any:
    """Returns the shapes and dtypes of the parameters of a model, or of a network around one."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *model.example()))["params"]


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that arrays of these shapes and shardings take on one device."""

    def one(x: Any) -> int:
        # Without a sharding an array is pmap's, whose first axis is the devices.
        shape = x.shape[1:] if x.sharding is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * np.dtype(x.dtype).itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            per_output = math.prod(kernel) // out_features
            total += math.prod(equation.outvars[0].aval.shape) * per_output
        else:
            inner = sum(_products(sub) for sub in jaxprs_in_params(equation.params))
            total += inner * equation.params.get("length", 1)
    return total

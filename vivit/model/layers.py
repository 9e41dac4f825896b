"""Dense layers, MLPs, dropout and drop path (Flax).

Dropout and drop path are active where `apply` is given a "dropout" rng, and nowhere else.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.axes import Grid
from vivit.mesh import SEQUENCE
from vivit.ramps import Strength, is_off
from vivit.registry import Registry


def flat_product(x: Array, kernel: Array) -> Array:
    """Returns x [..., D] times a kernel [D, M], as one product of two matrices.

    With the leading axes kept, XLA's CPU backend takes 1.5 times as long for an MLP's forward and
    backward pass (docs/attention.md). Where tokens are split over devices they are kept: merged,
    the axes of clips and steps could not be split each on its own.
    """
    if SEQUENCE in jax.sharding.get_abstract_mesh().axis_names:
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """A linear map of the last `inputs` axes of x to axes of the lengths `features`.

    Parameters and their initial values are those of Flax's DenseGeneral.
    """

    features: tuple[int, ...]
    dtype: str
    inputs: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "B T S ..."]) -> Float[Array, "B T S ..."]:
        leading = x.shape[: x.ndim - self.inputs]
        shape = (*x.shape[x.ndim - self.inputs :], *self.features)
        flat = (math.prod(shape[: self.inputs]), math.prod(self.features))
        init = lambda key, _: self.kernel_init(key, flat).reshape(shape)
        kernel = self.param("kernel", init, shape).reshape(flat).astype(self.dtype)
        out = flat_product(x.reshape(*leading, -1).astype(self.dtype), kernel)
        out = out.reshape(*leading, *self.features)
        if not self.use_bias:
            return out
        return out + self.param("bias", self.bias_init, self.features).astype(self.dtype)


class DropPath(nn.Module):
    """Drops a residual branch for whole clips and rescales the others, which keeps the mean.

    Stochastic depth (1603.09382) as timm's drop path; Scenic's is not rescaled.
    """

    rate: Strength

    @nn.compact
    def __call__(self, x: Grid, depth_fraction: float | Float[Array, ""] = 1.0) -> Grid:
        if is_off(self.rate) or not self.has_rng("dropout"):
            return x
        keep = 1 - self.rate * depth_fraction
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return x * (kept / keep).astype(x.dtype)


class Dropout(nn.Module):
    """Dropout of single values, active where there is a "dropout" rng; the others are rescaled."""

    rate: Strength

    @nn.compact
    def __call__(self, x: Grid) -> Grid:
        if is_off(self.rate) or not self.has_rng("dropout"):
            return x
        return _Drop(self.rate, name="Dropout_0")(x)  # by this name runs draw as they always did


class _Drop(nn.Module):
    rate: Strength

    @nn.compact
    def __call__(self, x: Grid) -> Grid:
        keep = 1 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), 0)


ACTIVATIONS: Registry[Callable[[Array], Array]] = Registry("activation")
ACTIVATIONS.add("gelu_tanh", partial(nn.gelu, approximate=True))
ACTIVATIONS.add("gelu", partial(nn.gelu, approximate=False))
ACTIVATIONS.add("quick_gelu", lambda x: x * nn.sigmoid(1.702 * x))
ACTIVATIONS.add("relu", nn.relu)
ACTIVATIONS.add("silu", nn.silu)


@ACTIVATIONS.register("swiglu")
def swiglu(x: Array) -> Array:
    """Returns silu of the first half of the channels times the second half (2002.05202)."""
    if x.shape[-1] % 2:
        raise ValueError(f"mlp_dim={x.shape[-1]} must be even for activation 'swiglu'")
    gate, value = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * value


class Mlp(nn.Module):
    """Two dense layers with an activation between them, to `hidden` channels and, where a gated
    activation halves them, from half as many; the result has `features` channels, or as
    many as x for 0."""

    hidden: int
    activation: Callable[[Array], Array]
    dropout: Strength
    dtype: str
    features: int = 0

    @nn.compact
    def __call__(self, x: Grid) -> Float[Array, "B T S features"]:
        dense = partial(Dense, dtype=self.dtype, bias_init=nn.initializers.normal(1e-6))
        features = self.features or x.shape[-1]
        x = self.activation(dense((self.hidden,), name="up")(x))
        x = Dropout(self.dropout)(x)
        return dense((features,), name="down")(x)

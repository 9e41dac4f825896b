"""What the score of a class is made of, by the name of a method.

Those here need nothing but a model's logits, so that they are baselines for methods that read
attention, which are in relevance.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Float, Int, Shaped

from vivit.analysis.capture import on_one_device
from vivit.axes import Clips
from vivit.model import ViViT
from vivit.model.config import ModelConfig
from vivit.model.embed import as_floats
from vivit.registry import OptionRegistry, Options, Registry, options_of

Attributions = Float[Array, "B T S"]
FloatClips = Float[Array, "B F H W C"]


@dataclass(frozen=True)
class Subject:
    """What a method attributes: the logits of one class of each clip. clips: as floats."""

    model: ViViT
    params: Any
    clips: FloatClips
    classes: Int[Array, " B"]

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def scores(self, clips: FloatClips) -> Float[Array, " B"]:
        """Returns the logits of the classes for other clips of the same shape."""
        logits = self.model.apply({"params": self.params}, clips)
        return jnp.take_along_axis(logits, self.classes[:, None], axis=1)[:, 0]  # pyright: ignore

    def gradient(self, clips: FloatClips) -> FloatClips:
        """Returns the gradient of `scores` by the pixels of other clips."""
        return jax.grad(lambda x: self.scores(x).sum())(clips)


@dataclass(frozen=True)
class Method:
    """A registered method: `attribute(subject, **options)`, on the clip's grid."""

    attribute: Callable[..., Attributions]
    options: Options = field(default_factory=Options)


METHODS: OptionRegistry[Method] = OptionRegistry("method of attribution")


def method(name: str):
    """Returns a decorator that registers a function as a method; see `Method`.

    The function's keyword-only arguments are its options, each with a default.
    """

    def register(attribute):
        METHODS.add(name, Method(attribute, options_of(attribute)))
        return attribute

    return register


def check_methods(names: Iterable[str]) -> None:
    """Raises ValueError for names that are not registered, before any work."""
    for name in names:
        _ = METHODS[name]


def attribute(name: str, model: ViViT, params: Any, clips: Clips, classes: Any) -> Attributions:
    """Returns what each token's pixels do for the logit of a class, by clip: on the clip's grid, in
    units that are the method's.

    name: of METHODS, with its options. classes: the index of a logit, of each clip. Compiled once
    for a model and a shape.

    Raises ValueError for an unknown method, and for classes that the model does not have.
    """
    known, numbers = model.config.classes, jnp.asarray(classes)
    if numbers.shape != (len(clips),) or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(
            f"{len(clips)} clips need as many numbers of classes, not {numbers.dtype} of shape "
            f"{numbers.shape}; with several heads, classes are counted through all of them"
        )
    if not known or bool(((numbers < 0) | (numbers >= known)).any()):
        raise ValueError(
            f"classes {numbers.tolist()} of a model with {known} classes: they are numbers from 0 "
            f"to {known - 1}"
        )
    _ = METHODS[name]  # raises for an unknown name, outside of jit
    return _attribute(name, on_one_device(model), params, jnp.asarray(clips), numbers)


@partial(jax.jit, static_argnums=(0, 1))
def _attribute(name: str, model: ViViT, params: Any, clips: Clips, classes: Any) -> Attributions:
    entry = METHODS[name]
    floats = as_floats(clips, model.config).astype(jnp.float32)
    return entry.attribute(Subject(model, params, floats, classes), **entry.options)


@method("integrated_gradients")
def integrated_gradients(subject: Subject, *, steps: int = 32) -> Attributions:
    """Integrated gradients (1703.01365) on a straight line from a clip of zeros, which is the mean
    colour, at the midpoints of `steps` parts. They add up to the score less that of such a clip."""

    def add(total: FloatClips, part: Array) -> tuple[FloatClips, None]:
        return total + subject.gradient(part * clips), None

    clips = subject.clips
    parts = (jnp.arange(steps) + 0.5) / steps
    total, _ = jax.lax.scan(add, jnp.zeros_like(clips), parts)
    return _of_tokens(clips * total / steps, subject.config)


@method("smoothgrad")
def smoothgrad(subject: Subject, *, samples: int = 16, noise: float = 0.15) -> Attributions:
    """SmoothGrad (1706.03825): the size of the mean gradient over noisy copies of the clip.

    noise: standard deviation, as a part of the range of a clip's pixels. Always the same draws.
    """
    axes, clips = (1, 2, 3, 4), subject.clips
    spread = clips.max(axis=axes, keepdims=True) - clips.min(axis=axes, keepdims=True)

    def add(total: FloatClips, key: Array) -> tuple[FloatClips, None]:
        noisy = clips + noise * spread * jax.random.normal(key, clips.shape)
        return total + subject.gradient(noisy), None

    keys = jax.random.split(jax.random.key(0), samples)
    total, _ = jax.lax.scan(add, jnp.zeros_like(clips), keys)
    return _of_tokens(jnp.abs(total) / samples, subject.config)


# Name -> (T, S) -> the number of each token's group; those of a group are covered together.
REGIONS: Registry[Callable[[int, int], np.ndarray]] = Registry("region")
REGIONS.add("tokens", lambda t, s: np.arange(t * s).reshape(t, s))
REGIONS.add("tubes", lambda t, s: np.tile(np.arange(s), (t, 1)))
REGIONS.add("steps", lambda t, s: np.tile(np.arange(t)[:, None], (1, s)))


@method("occlusion")
def occlusion(subject: Subject, *, region: str = "tubes") -> Attributions:
    """How much the score falls when a region has the mean colour (1311.2901, section 4.2).

    region: of REGIONS: "tokens" one by one, "tubes" (a place in all time steps), or "steps" (all
    places of a time step). All tokens of a region get its fall. Each takes a forward pass.
    """
    steps, rows, columns = subject.config.grid
    clips, scores = subject.clips, subject.scores
    groups = REGIONS[region](steps, rows * columns)
    pixels = pixels_of(jnp.asarray(groups)[None], subject.config)
    covered = lambda group: scores(jnp.where(pixels == group, 0, clips))
    falls = scores(clips) - jax.lax.map(covered, jnp.arange(groups.max() + 1))  # [groups, B]
    return jnp.moveaxis(falls[groups], 2, 0)


@method("random")
def random(subject: Subject, *, seed: int = 1) -> Attributions:
    """Random numbers, as a baseline: other ones for each clip of a batch."""
    t, y, x = subject.config.grid
    return jax.random.uniform(jax.random.key(seed), (len(subject.clips), t, y * x))


@method("uniform")
def uniform(subject: Subject) -> Attributions:
    """The same for all tokens, as a baseline."""
    t, y, x = subject.config.grid
    return jnp.ones((len(subject.clips), t, y * x))


@method("centre")
def centre(subject: Subject) -> Attributions:
    """A prior of the middle in space and time, as a baseline: one less the distance from it, in
    parts of the clip's half diagonal. The same for all clips."""
    t, y, x = subject.config.grid
    lines = [(np.arange(n) + 0.5) / n * 2 - 1 for n in (t, y, x)]
    squares = sum(axis**2 for axis in np.meshgrid(*lines, indexing="ij"))
    near = jnp.asarray(1 - np.sqrt(squares / 3), jnp.float32)
    return jnp.broadcast_to(near.reshape(t, y * x), (len(subject.clips), t, y * x))


def pixels_of(tokens: Shaped[Array, "B T S"], config: ModelConfig) -> Shaped[Array, "B F H W 1"]:
    """Returns an array of tokens as one of their pixels."""
    t, h, w = config.tubelet
    grid = rearrange(tokens, "B T (Y X) -> B T Y X", Y=config.grid[1])
    return repeat(grid, "B T Y X -> B (T t) (Y h) (X w) 1", t=t, h=h, w=w)


def _of_tokens(x: FloatClips, config: ModelConfig) -> Attributions:
    """Returns the sums over the pixels of each token."""
    t, h, w = config.tubelet
    return reduce(x, "B (T t) (Y h) (X w) C -> B T (Y X)", "sum", t=t, h=h, w=w)

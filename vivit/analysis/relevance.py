"""Methods of attribution that read attention, each in its form for any list of stages."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vivit.analysis.attention import CHUNK, Attention
from vivit.analysis.attribution import Attributions, Subject, method
from vivit.analysis.capture import AttentionMaps, capture, trace
from vivit.analysis.rollout import Mix, Scalars, mean_of_heads, parts_of_readout, rollout


@method("rollout")
def attention_rollout(subject: Subject, *, residual: float = 0.5) -> Attributions:
    """Attention rollout (2005.00928), which is the same for all classes; see `rollout`."""
    return rollout(capture(subject.model, subject.params, subject.clips), residual=residual)


@method("attention")
def raw_attention(subject: Subject) -> Attributions:
    """Weights of the last layer of each stage, averaged over heads, that reach the readout through
    those of later stages; the same for all classes."""
    maps = capture(subject.model, subject.params, subject.clips)
    return parts_of_readout(maps, _in_last_layers(maps, mean_of_heads))


@method("gradient_attention")
def gradient_attention(subject: Subject) -> Attributions:
    """Weights times the gradient of the score by them, where positive, averaged over heads, of the
    last layer of each stage (2012.09838, section 3.2, without its layer-wise relevance)."""
    maps = _traced(subject)
    return parts_of_readout(maps, _in_last_layers(maps, _positive))


@method("relevance")
def relevance(subject: Subject) -> Attributions:
    """Chefer et al. (2103.15679), section 3.1: an attention adds to a token's relevance that of its
    keys, by weights times the gradient of the score by them, where positive, averaged over heads.
    What tokens have of themselves alone, which a readout other than a class token reads, is left
    out.
    """
    maps = _traced(subject)
    add = lambda attention, values: values + _positive(attention, values)
    alone = parts_of_readout(maps, lambda attention, values: values)
    return parts_of_readout(maps, add) - alone


@method("grad_cam")
def grad_cam(subject: Subject) -> Attributions:
    """Grad-CAM (1610.02391) on tokens: channels of the tokens that the last block with the clip's
    whole grid gets, weighted by the mean gradient of the score, where their sum is positive."""
    maps = trace(subject.model, subject.params, subject.clips, subject.classes)
    steps, rows, columns = maps.model.config.grid
    whole = [a for a in maps.attentions if a.clip_grid == (steps, rows * columns)]
    if not whole:
        raise ValueError("grad_cam: no attention gets the clip's whole grid; use another method")
    last = whole[-1]
    skipped = maps.model.config.stages[last.stage].layout.extra - last.layout.extra
    x, gradient = (
        of[last.stage, last.layer][:, :, skipped:].astype(jnp.float32)
        for of in (maps.tokens, maps.token_gradients)
    )
    of_clip = last.layout.remove(gradient, by_step=False)
    cam = jax.nn.relu((of_clip.mean(axis=(1, 2), keepdims=True) * x).sum(axis=-1))
    return last.on_clip(last.spread(cam))


def _traced(subject: Subject) -> AttentionMaps:
    maps = trace(subject.model, subject.params, subject.clips, subject.classes)
    for attention in maps.attentions:
        if attention.pattern.follows_values:
            raise ValueError(
                f"{attention.name}: its weights follow its values, so that a gradient by its "
                "weights alone does not exist; use a method without it, such as 'rollout'"
            )
    return maps


def _in_last_layers(maps: AttentionMaps, mix: Mix) -> Mix:
    depths = [stage.depth for stage in maps.model.config.stages]

    def in_last(attention: Attention, values: Scalars) -> Scalars:
        last = attention.layer == depths[attention.stage] - 1
        return mix(attention, values) if last else values

    return in_last


def _positive(attention: Attention, values: Scalars, *, chunk: int = CHUNK) -> Scalars:
    """Returns the mean over heads of (A ⊙ ∇A)⁺ times the values of the tokens that attend.

    The gradient by a weight is that by what the attention mixed, times the key's value, so the
    positive part is made `chunk` keys at a time, and again in a backward pass.
    """
    assert attention.values is not None
    assert attention.gradient is not None
    b, t, s, h, _ = attention.gradient.shape
    g, n = attention.values.shape[3], t * s
    chunk = min(chunk, n)
    keys = -(-n // chunk) * chunk
    of_key = lambda x: jnp.pad(
        x.reshape(b, n, *x.shape[3:]), ((0, 0), (0, keys - n), *((0, 0),) * (x.ndim - 3))
    )
    v = of_key(jnp.repeat(attention.values, h // g, axis=3).astype(jnp.float32))
    passed = of_key(values)
    gradient = attention.gradient.astype(jnp.float32)

    @partial(jax.checkpoint, prevent_cse=False)
    def add(total: Scalars, first: Array) -> tuple[Scalars, None]:
        marks = jax.nn.one_hot(jnp.arange(n) - first, chunk).reshape(1, t, s, 1, chunk)
        weights = attention.mix_tokens(jnp.broadcast_to(marks, (b, t, s, g, chunk)))
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1)
        slopes = jnp.einsum("BTShc,BKhc->BTShK", gradient, part(v))
        positive = jax.nn.relu(weights * slopes).mean(axis=3)
        return total + jnp.einsum("BTSK,BK->BTS", positive, part(passed)), None

    total, _ = jax.lax.scan(add, jnp.zeros((b, t, s)), jnp.arange(0, keys, chunk))
    return total

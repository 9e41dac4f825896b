"""Attention of a model in some clips, whatever its patterns and kernel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.analysis.attention import Attention
from vivit.analysis.kept import Kept, Queries, concatenate, keep
from vivit.analysis.summaries import chosen
from vivit.attention import Pattern
from vivit.axes import Clips, Logits
from vivit.model import ViViT
from vivit.model.attention import CAPTURED, PERTURBED, TOKENS
from vivit.model.params import of_layer
from vivit.model.places import Places, check_places


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "logits", "attentions", "pooled", "weights_of_readout", "sizes", "sources", "places",
        "tokens", "token_gradients",
    ],
    meta_fields=["model"],
)  # fmt: skip
@dataclass(frozen=True, repr=False)
class AttentionMaps:
    """What a model attended to in some clips. A JAX pytree of its arrays.

    attentions: in the order of the forward pass. pooled: each stage's grid before its readout, or
    None where it does not pool. weights_of_readout: each stage's weights [B, T, S] of a readout
    with parameters, or None. sizes: how many spatial tokens each pooled token stands for, where a
    reduction counts them. sources: (stage, layer) -> the matrix [B, T, R, S] by which its tokens
    were reduced after that layer's attentions; layer -1 is the stage's start. places: of the tokens
    that were seen, or None for all. tokens: (stage, layer) -> the tokens that this block gets, and
    token_gradients: of a score by them; only in maps of `trace`.
    """

    model: ViViT
    logits: Logits
    attentions: tuple[Attention, ...]
    pooled: tuple[Array | None, ...]
    weights_of_readout: tuple[Array | None, ...]
    sizes: tuple[Array | None, ...]
    sources: Mapping[tuple[int, int], Array]
    places: Places | None = None
    tokens: Mapping[tuple[int, int], Array] = field(default_factory=dict)
    token_gradients: Mapping[tuple[int, int], Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = ", ".join(attention.name for attention in self.attentions)
        return f"<attention maps of {self.logits.shape[0]} clips: {names}>"

    def of(
        self, *, pattern: str | None = None, stage: int | None = None, layer: int | None = None
    ) -> list[Attention]:
        """Returns the attentions of a pattern ("window", with or without options), of a stage or of
        a layer of their stage.

        Raises ValueError that lists all attentions if none fits.
        """
        found = [
            a
            for a in self.attentions
            if pattern in (None, a.pattern.name, a.pattern.label)
            and stage in (None, a.stage)
            and layer in (None, a.layer)
        ]
        if not found:
            known = "; ".join(a.name for a in self.attentions)
            raise ValueError(
                f"no attention with {pattern=}, {stage=}, {layer=}; there are: {known}"
            )
        return found

    def keep(self, *want: str, queries: Queries = ()) -> Kept:
        """Returns summaries of all attentions, without making all weights.

        want: names of SUMMARIES, such as "entropy" or "top(8)". queries: (t, y, x) on the clip's
        grid, whose weights are kept as the array "rows"; a stage that has pooled space has those of
        its time step.

        Raises ValueError for an unknown summary, a query off the grid, and for more than a device's
        memory holds.
        """
        return keep(self.attentions, self.model.config, want, queries)

    def weights(self, **chosen: Any) -> Float[Array, "L B h Tq Sq Tk Sk"]:
        """`Attention.weights` of all layers that `of(**chosen)` gives, which share one grid."""
        return jnp.stack([a.weights() for a in self.of(**chosen)])

    def over_time(self, **chosen: Any) -> Float[Array, "L B h Tq Tk"]:
        """`Attention.over_time` of all layers that `of(**chosen)` gives."""
        return jnp.stack([a.over_time() for a in self.of(**chosen)])


@overload
def capture(
    model: ViViT,
    params: Any,
    clips: Clips,
    places: Places | None = None,
    *,
    value_norms: bool = False,
) -> AttentionMaps: ...


@overload
def capture(
    model: ViViT,
    params: Any,
    clips: Clips,
    places: Places | None = None,
    *,
    want: Sequence[str],
    queries: Queries = (),
    chunk: int | None = None,
    value_norms: bool = False,
) -> Kept: ...


def capture(
    model: ViViT,
    params: Any,
    clips: Clips,
    places: Places | None = None,
    *,
    want: Sequence[str] | None = None,
    queries: Queries = (),
    chunk: int | None = None,
    value_norms: bool = False,
) -> AttentionMaps | Kept:
    """Runs clips through a model and keeps its queries and keys, or summaries of its attention.

    places: of the tokens that are seen, as in `ViViT.encode`; None for all. Maps and rollout are on
    the whole grid of the clip all the same. want, queries: what is kept instead of the queries and
    keys, as in `AttentionMaps.keep`. chunk: how many clips run at a time, which bounds the
    memory; None for all. Clips that are sharded over devices give maps that are. value_norms:
    multiplies each weight by the norm of what the key's value adds to a token that takes it whole,
    head by head: Kobayashi et al. (2004.10102), section 3.

    Raises ValueError for a model that cannot encode some of the tokens, for a chunk below 1, and as
    `AttentionMaps.keep`.
    """
    if want is None and not queries:
        if chunk is not None:
            raise ValueError(
                f"{chunk=} does nothing without want, as all queries and keys are kept"
            )
        return _capture(model, params, clips, places, value_norms=value_norms)
    if want:
        _ = chosen(want)  # raises for anything but a list of summaries, before any work
    chunk = len(clips) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"{chunk=} is not at least 1")
    kept = []
    for first in range(0, len(clips), chunk):
        part = slice(first, first + chunk)
        seen = None if places is None else places[part]
        maps = _capture(model, params, clips[part], seen, value_norms=value_norms)
        kept.append(maps.keep(*want or (), queries=queries))
    return concatenate(kept)


def trace(model: ViViT, params: Any, clips: Clips, classes: Any) -> AttentionMaps:
    """Returns maps that also have all values and tokens, and the gradients of the logits of these
    classes, one of each clip, by what attentions mix and by the tokens that blocks get."""
    model = on_one_device(model)
    empty = jax.eval_shape(
        lambda: model.apply({"params": params}, clips, mutable=[PERTURBED])[1].get(PERTURBED, {})
    )

    def score(added: Any) -> tuple[Array, tuple[Logits, Any]]:
        variables = {"params": params, PERTURBED: added}
        logits, kept = model.apply(variables, clips, mutable=[CAPTURED, TOKENS])  # pyright: ignore
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), (logits, kept)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)
    gradients, (logits, kept) = jax.grad(score, has_aux=True)(zeros)
    merged = _merged(kept.get(CAPTURED, {}), kept.get(TOKENS, {}), gradients)
    return _maps(model, params, logits, merged, None)


def _capture(
    model: ViViT, params: Any, clips: Clips, places: Places | None, *, value_norms: bool = False
) -> AttentionMaps:
    if places is not None:
        check_places(model.config, lines=places.shape[1] > 1)
    model = on_one_device(model)
    for pattern in (p for stage in model.config.stages for p in stage.attentions):
        if value_norms and pattern.follows_values:
            raise ValueError(
                f"value_norms: values of {pattern.name!r} go through more than the output's "
                "projection, so their norms are not those of what a token gets"
            )
    logits, kept = _apply_capturing(model, value_norms, params, clips, places)
    return _maps(model, params, logits, kept, places)


def on_one_device(model: ViViT) -> ViViT:
    """Returns a model that runs without a mesh, with the same results."""
    if model.config.kernel.over_devices:  # equal to dense but for a mesh
        return model.with_settings(kernel="chunked")
    return model


def _maps(
    model: ViViT, params: Any, logits: Logits, kept: Mapping[str, Any], places: Places | None
) -> AttentionMaps:
    steps, rows, columns = model.config.grid
    attentions, sources, tokens, gradients = [], {}, {}, {}
    source = None  # which spatial tokens of the clip's grid the tokens come from, until a pooling
    stages = [(kept.get(f"stage_{i}", {}), s) for i, s in enumerate(model.config.stages)]
    for i, (captured, stage) in enumerate(stages):
        if (reduced := captured.get("reduce", {}).get("source")) is not None:
            source = sources[i, -1] = reduced
        for layer in range(stage.depth):
            at_layer = of_layer(captured, layer)
            params_of_layer = of_layer(params[f"stage_{i}"], layer)
            if "tokens" in at_layer:
                tokens[i, layer] = at_layer["tokens"]
            if "tokens_gradient" in at_layer:
                gradients[i, layer] = at_layer["tokens_gradient"]
            for pattern in stage.attentions:
                name = f"attention_{stage.block.attention_name(pattern)}"
                layout = stage.block.layout_of(pattern, stage.layout.at(places))
                attentions.append(
                    Attention(
                        stage=i,
                        layer=layer,
                        pattern=pattern,
                        q=at_layer[name]["queries"],
                        k=at_layer[name]["keys"],
                        layout=layout,
                        grid=(steps, rows * columns),
                        kernel=model.config.kernel,
                        soft_cap=model.config.soft_cap,
                        context=_context(pattern, at_layer[name], params_of_layer[name]),
                        source=None if source is None else layout.matrix(source),
                        places=places,
                        values=at_layer[name].get("values"),
                        gradient=at_layer[name].get("gradient"),
                        value_norms=at_layer[name].get("value_norms"),
                        token_norms=at_layer["norms"][:, :, stage.layout.extra - layout.extra :],
                    )
                )
            if (merged := at_layer.get("source")) is not None:
                sources[i, layer] = merged
                source = merged if source is None else jnp.einsum("BTRS,BTSP->BTRP", merged, source)
        if "s" in stage.pool_axes:
            source = None
    of_stages = lambda name: tuple(captured.get(name) for captured, _ in stages)
    return AttentionMaps(
        model,
        logits,
        tuple(attentions),
        pooled=of_stages("pooled"),
        weights_of_readout=of_stages("weights"),
        sizes=of_stages("sizes"),
        sources=sources,
        places=places,
        tokens=tokens,
        token_gradients=gradients,
    )


def _context(pattern: Pattern, captured: Any, params: Any) -> dict[str, Any]:
    """The arrays that a pattern gets by keyword in one attention."""
    context = {key: params[key] for key in pattern.context_args if key in params}
    return context | ({"values": captured["values"]} if pattern.follows_values else {})


@partial(jax.jit, static_argnums=(0, 1))
def _apply_capturing(
    model: ViViT, value_norms: bool, params: Any, clips: Clips, places: Any
) -> tuple[Any, Any]:
    collections = [CAPTURED, TOKENS] if value_norms else [CAPTURED]
    logits, kept = model.apply({"params": params}, clips, places, mutable=collections)
    norms = _value_norms(kept.get(TOKENS, {}), params)
    return logits, _merged(kept.get(CAPTURED, {}), norms)


def _merged(*trees: Any) -> dict[str, Any]:
    """Returns one tree with the arrays of all of them."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for name, x in tree.items():
            merged[name] = _merged(merged.get(name, {}), x) if isinstance(x, Mapping) else x
    return merged


def _value_norms(tokens: Any, params: Any) -> dict[str, Any]:
    """Returns a tree with the norms of the values of every attention in a tree of TOKENS."""
    return {
        name: {"value_norms": _norms(x["values"], params[name])}
        if "values" in x
        else _value_norms(x, params[name])
        for name, x in tokens.items()
        if isinstance(x, Mapping)
    }


def _norms(values: Array, of_attention: Any) -> Float[Array, "... T S h"]:
    """Returns the norms of what the values of one attention, or of all scanned layers, add to the
    tokens that take them whole: of f(x) in Kobayashi et al. (2004.10102), equation 4."""
    kernel = of_attention["out"]["kernel"]  # [..., h, c, D]
    if "projection" in of_attention:
        kernel = jnp.einsum("...hcD,...DE->...hcE", kernel, of_attention["projection"]["kernel"])
    values = jnp.repeat(values, kernel.shape[-3] // values.shape[-2], axis=-2)
    squares = jnp.einsum("...hcD,...hdD->...hcd", kernel, kernel)
    layers = "L" if kernel.ndim == 4 else ""
    equation = f"{layers}BTShc,{layers}hcd,{layers}BTShd->{layers}BTSh"
    return jnp.sqrt(jnp.maximum(jnp.einsum(equation, values, squares, values), 0))

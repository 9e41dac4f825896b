"""A stage of the encoder: positions and extra tokens, blocks, a norm and a readout (Flax).

Names of submodules are checkpoint format.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.attention.chunks import SAVED_RESIDUALS
from vivit.attention.reductions import NO_REDUCTION
from vivit.axes import Grid, Levels, NewGrid
from vivit.model.attention import CAPTURED, PERTURBED, TOKENS, sow
from vivit.model.block import Carry, Reduce
from vivit.model.config import ModelConfig
from vivit.model.embed import Position, on_grid
from vivit.model.layers import Dropout
from vivit.model.places import Places, take
from vivit.registry import Registry

REMAT: Registry[Callable[..., Any]] = Registry("remat")
REMAT.add("none", lambda module, **_: module)
REMAT.add("full", nn.remat)
# Keeps what the backward pass of chunked attention needs, so that its forward pass is not repeated;
# with another kernel it is the same as "full".
REMAT.add(
    "attention",
    partial(nn.remat, policy=jax.checkpoint_policies.save_only_these_names(SAVED_RESIDUALS)),
)
REMAT.add(
    "dots",
    partial(nn.remat, policy=jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims),
)


class Stage(nn.Module):
    """Stage i of the encoder: equal blocks over one grid, with what comes before and after."""

    config: ModelConfig
    i: int

    @nn.compact
    def __call__(
        self, x: Grid, places: Places | None = None, *, pool: bool = True, levels: int = 1
    ) -> Levels:
        """places: of the tokens on the clip's grid, if they are not all of them. pool: False leaves
        out the readout. levels: as in `ViViT.encode`."""
        config, stage = self.config, self.config.stages[self.i]
        reduction, layout = stage.reduction, stage.layout.at(places)
        x = self._add_positions_and_extra(x, places)
        if config.pre_norm and self.i == 0:
            x = nn.LayerNorm(config.norm_epsilon, dtype=jnp.float32, name="pre_norm")(x)
        if reduction != NO_REDUCTION and not reduction.each_layer:
            x = Reduce(config, self.i, name="reduce")(x)
        carry = Carry(x, jnp.ones(x.shape[:3]) if reduction.each_layer else None, places)
        (x, sizes, _), earlier = self._blocks(carry, levels)
        if stage.norm:
            x = nn.LayerNorm(config.norm_epsilon, dtype=jnp.float32, name="norm")(x)
        if not stage.readout.class_token or not pool:
            x = layout.remove(x, by_step=reduction == NO_REDUCTION)
            sizes = None if sizes is None else sizes[:, :, layout.extra :]
        if earlier:
            parts = [layout.remove(y, by_step=reduction == NO_REDUCTION) for y in earlier]
            x = jnp.concatenate([*(part.astype(x.dtype) for part in parts), x], axis=-1)
        return self._pool(x, sizes) if stage.pool_axes and pool else x

    def _pool(self, x: Grid, sizes: Float[Array, "B T S"] | None) -> NewGrid:
        stage = self.config.stages[self.i]
        sow(self, pooled=x, **({} if sizes is None else {"sizes": sizes}))
        if stage.readout.module is None:
            return stage.readout.pool(x, stage.pool_axes, sizes)
        module = stage.readout.module(self.config, self.i, name="pool")  # pyright: ignore[reportCallIssue]
        pooled = module(x, stage.pool_axes)
        sow(self, weights=pooled.weights)
        return pooled.out

    def _add_positions_and_extra(self, x: Grid, places: Places | None) -> NewGrid:
        config, stage = self.config, self.config.stages[self.i]
        row = None  # the class token's
        if stage.lengths:
            table = Position(config, self.i, name="position")()
            if stage.layout.class_token:
                row, table = table[:1], table[1:]
            steps, (rows, columns) = stage.layout.steps, stage.layout.space
            whole = (x.shape[1], x.shape[2]) if places is None else (steps, rows * columns)
            table = on_grid(table, stage.position_axes, whole)
            if places is not None:
                table = take(jnp.broadcast_to(table, (1, *whole, config.width)), places)
            x = x + table.astype(x.dtype)
        if stage.layout.axis:
            x = stage.layout.insert(x, self._extra_tokens(row).astype(x.dtype))
        return Dropout(config.dropout)(x) if stage.lengths else x

    def _extra_tokens(self, row: Float[Array, "1 D"] | None) -> Float[Array, "extra D"]:
        """Class token and registers (2309.16588); row: the class token's position embedding."""
        layout, width = self.config.stages[self.i].layout, self.config.width
        extra = []
        if layout.class_token:
            token = self.param("class_token", nn.initializers.zeros, (1, 1, 1, width))[0, 0]
            extra.append(token if row is None else token + row)
        if layout.registers:
            init = nn.initializers.normal(0.02)
            extra.append(self.param("registers", init, (layout.registers, width)))
        return jnp.concatenate(extra)

    def _blocks(self, carry: Carry, levels: int) -> tuple[Carry, list[Grid]]:
        """Returns also the tokens after each of `levels` equal parts of the layers but the last."""
        config, stage = self.config, self.config.stages[self.i]
        part = stage.depth // levels
        ends = [part * n - 1 for n in range(1, levels)]
        layers = np.arange(stage.depth)
        depth_fractions = (stage.first_layer + layers) / max(stage.total_layers - 1, 1)
        if config.scan and stage.depth:
            block = config.remat(stage.block.module, prevent_cse=False)
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, CAPTURED: 0, TOKENS: 0, PERTURBED: 0},
                split_rngs={"params": True, "dropout": True},
                length=stage.depth,
            )
            at = (jnp.asarray(depth_fractions, jnp.float32), jnp.asarray(layers, jnp.int32))
            carry, kept = scanned(config, self.i, keeps=levels > 1, name="layers")(carry, at)
            return carry, [kept[layer] for layer in ends]
        # A layer's index is static, so that patterns can ask whether it is even.
        block = config.remat(stage.block.module, static_argnums=(2,))
        earlier = []
        for layer, fraction in zip(layers.tolist(), depth_fractions.tolist(), strict=True):
            carry, _ = block(config, self.i, name=f"layer_{layer}")(carry, (fraction, layer))
            if layer in ends:
                earlier.append(carry.x)
        return carry, earlier

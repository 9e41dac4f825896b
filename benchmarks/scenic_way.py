"""The factorised encoder as Scenic's model computes it, for timing: B/16x2 with a mean readout.

A 3D convolution makes the tubelets, the spatial encoder is vmapped over steps, and attention is
Flax's own with separate projections of queries, keys and values (google-research/scenic,
projects/vivit/model.py). Written anew from that description; no code is taken over.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class EncoderBlock(nn.Module):
    heads: int
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(y, y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype)(y), approximate=True)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class Encoder(nn.Module):
    depth: int
    heads: int
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(self.depth):
            x = EncoderBlock(self.heads, self.mlp_dim, self.dtype)(x)
        return nn.LayerNorm(dtype=self.dtype)(x)


class FactorisedEncoder(nn.Module):
    classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, clips):
        tubelet = (2, 16, 16)
        x = nn.Conv(768, tubelet, tubelet, padding="VALID", dtype=self.dtype)(clips)
        x = x.reshape(*x.shape[:2], -1, x.shape[-1])  # [B, T, S, D]
        spatial = Encoder(12, 12, 3072, self.dtype)
        x = jax.vmap(spatial, in_axes=1, out_axes=1)(x).mean(axis=2)
        x = Encoder(4, 12, 3072, self.dtype)(x).mean(axis=1)
        return nn.Dense(self.classes)(x)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from vivit.model.embed import POSITION_EMBEDDINGS, Position, Tubelet, on_grid, sinusoids
from vivit.model.layers import DropPath


def config(clip, tubelet, width=12, **settings):
    """The resolved config of a joint model of one layer."""
    sizes = {"width": width, "depth": 1, "heads": 1, "mlp_dim": 4, "classes": 2}
    fields = {"clip": clip, "tubelet": tubelet, "family": "joint", **sizes, **settings}
    return vivit.build(fields).config


def init(module, *args):
    return jax.jit(module.init)(jax.random.key(0), *args).get("params", {})


def test_a_tubelet_is_a_3d_convolution():
    clips = jax.random.normal(jax.random.key(1), (2, 4, 8, 6, 3))
    tubelet = Tubelet(config((4, 8, 6), (2, 4, 3), 5))
    params = init(tubelet, clips)
    convolution = nn.Conv(5, (2, 4, 3), strides=(2, 4, 3), padding="VALID")
    expected = convolution.apply({"params": params}, clips).reshape(2, 2, 4, 5)
    np.testing.assert_allclose(tubelet.apply({"params": params}, clips), expected, atol=1e-5)


def test_uint8_is_scaled_to_minus_one_to_one():
    clips = jax.random.randint(jax.random.key(1), (1, 2, 4, 4, 3), 0, 256).astype(jnp.uint8)
    tubelet = Tubelet(config((2, 4, 4), (2, 2, 2), 5))
    params = init(tubelet, clips)
    scaled = clips / 127.5 - 1.0
    assert float(scaled.min()) >= -1
    np.testing.assert_allclose(
        tubelet.apply({"params": params}, clips),
        tubelet.apply({"params": params}, scaled),
        atol=1e-5,
    )


def test_uniform_frames_see_one_central_frame_of_each_group():
    clips = jax.random.normal(jax.random.key(1), (1, 6, 4, 4, 3))
    sampled = Tubelet(config((6, 4, 4), (3, 2, 2), 5, embedding="uniform_frames"))
    params = init(sampled, clips)
    assert params["kernel"].shape == (1, 2, 2, 3, 5)
    single = Tubelet(config((2, 4, 4), (1, 2, 2), 5))
    np.testing.assert_allclose(
        sampled.apply({"params": params}, clips),
        single.apply({"params": params}, clips[:, jnp.array([1, 4])]),
        atol=1e-6,
    )


def position(kind, readout="mean"):
    """Positions of a grid of 2 x 3 x 4."""
    return Position(config((2, 3, 4), (1, 1, 1), position=kind, readout=readout), 0)


@pytest.mark.parametrize("readout", ["mean", "cls"])
@pytest.mark.parametrize("kind", POSITION_EMBEDDINGS)
def test_positions_have_one_row_per_token(kind, readout):
    module = position(kind, readout)
    table = module.apply({"params": init(module)})
    assert table.shape == (24 + (readout == "cls"), 12)


def test_separable_positions_are_sums_over_the_axes():
    module = position("learned_separable")
    params = init(module)
    tables = [params[f"table_{axis}"] for axis in range(3)]
    assert [len(t) for t in tables] == [2, 3, 4]
    got = module.apply({"params": params}).reshape(2, 3, 4, 12)
    expected = tables[0][:, None, None] + tables[1][None, :, None] + tables[2][None, None]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_sinusoids_are_sines_and_cosines():
    table = sinusoids(3, 4)
    np.testing.assert_allclose(table[0], [0, 0, 1, 1], atol=1e-7)
    np.testing.assert_allclose(
        table[1], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], rtol=1e-6
    )


def test_separable_sinusoids_change_along_one_axis_in_its_own_channels():
    table = np.asarray(position("sinusoidal_separable").apply({})).reshape(2, 3, 4, 12)
    np.testing.assert_array_equal(table[0, ..., 4:], table[1, ..., 4:])
    np.testing.assert_array_equal(table[:, 0, :, :4], table[:, 2, :, :4])
    assert (table[0, ..., :4] != table[1, ..., :4]).any()


def test_positions_broadcast_over_the_other_axis():
    table = jnp.arange(15.0).reshape(3, 5)
    assert on_grid(table, "s", (2, 3)).shape == (1, 1, 3, 5)
    assert on_grid(table[:2], "t", (2, 3)).shape == (1, 2, 1, 5)


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3, 1))
    out = DropPath(0.25).apply({}, x, rngs={"dropout": jax.random.key(0)})
    per_clip = np.asarray(out).reshape(4000, -1)
    assert (per_clip == per_clip[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_clip), [0, 1 / 0.75], rtol=1e-6)
    assert float(out.mean()) == pytest.approx(1, abs=0.03)


def test_drop_path_grows_with_the_fraction_of_the_depth():
    x = jnp.ones((4000, 1, 1, 1))
    apply = lambda fraction: DropPath(0.5).apply(
        {}, x, fraction, rngs={"dropout": jax.random.key(0)}
    )
    np.testing.assert_array_equal(apply(0.0), x)
    assert float((apply(0.5) == 0).mean()) == pytest.approx(0.25, abs=0.03)


def test_without_a_dropout_rng_nothing_is_dropped():
    x = jnp.ones((8, 1, 1, 1))
    np.testing.assert_array_equal(DropPath(0.9).apply({}, x), x)

"""Every kernel equals dense, in values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit.attention import KERNELS
from vivit.attention.kernels import chunked, dense

TOLERANCE = 1e-5


def draw(n, m, *, sets=(2,), heads=2, channels=8, values=8, dtype=jnp.float32):
    rng = np.random.default_rng(n * 1000 + m)
    shapes = (
        (*sets, n, heads, channels),
        (*sets, m, heads, channels),
        (*sets, m, heads, values),
        (*sets, n, heads, values),
    )
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def value_and_grads(kernel, q, k, v, weights):
    """The output, and the gradients of a weighted sum of it."""

    def loss(q, k, v):
        out = kernel(q, k, v)
        return (out.astype(jnp.float32) * weights).sum(), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [out, *grads]


def assert_equal(kernel, inputs):
    for ours, reference in zip(
        value_and_grads(kernel, *inputs), value_and_grads(dense, *inputs), strict=True
    ):
        assert ours.dtype == reference.dtype
        np.testing.assert_allclose(ours, reference, atol=TOLERANCE, rtol=TOLERANCE)


def test_dense_is_softmax_of_scaled_scores():
    q, k, v, _ = draw(3, 5, sets=())
    scores = np.einsum("nhk,mhk->hnm", q, k) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(dense(q, k, v), np.einsum("hnm,mhc->nhc", weights, v), atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (5, 12)])
def test_every_kernel_equals_dense(kernel, n, m):
    assert_equal(KERNELS[kernel], draw(n, m))


@pytest.mark.parametrize("chunk", [1, 4, 5, 16, 100])
@pytest.mark.parametrize(("n", "m"), [(16, 16), (13, 13), (3, 17), (17, 3)])
def test_chunked_equals_dense_for_lengths_that_do_and_do_not_divide(n, m, chunk):
    assert_equal(partial(chunked, chunk=chunk), draw(n, m))


@pytest.mark.parametrize("sets", [(), (3,), (2, 3)])
def test_chunked_takes_any_number_of_sets_and_value_channels(sets):
    assert_equal(partial(chunked, chunk=4), draw(9, 11, sets=sets, values=3))


def test_chunked_equals_dense_at_a_real_length():
    assert_equal(chunked, draw(1569, 1569, sets=(1,)))


def test_chunked_survives_scores_that_overflow_exp():
    q, k, v, _ = draw(9, 9)
    q = 1000 * q
    np.testing.assert_allclose(chunked(q, k, v, chunk=4), dense(q, k, v), atol=TOLERANCE)
    grads = jax.grad(lambda q, k, v: chunked(q, k, v, chunk=4).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


def test_chunked_in_bfloat16_is_no_worse_than_dense():
    exact = draw(33, 33)
    rounded = [x.astype(jnp.bfloat16) for x in exact[:3]]
    truth = value_and_grads(dense, *[x.astype(jnp.float32) for x in rounded], exact[3])

    def errors(kernel):
        results = value_and_grads(kernel, *rounded, exact[3])
        return [
            np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
            for a, b in zip(results, truth, strict=True)
        ]

    for ours, reference in zip(errors(partial(chunked, chunk=8)), errors(dense), strict=True):
        assert ours <= 1.25 * reference


def test_chunked_needs_a_fraction_of_the_memory():
    shape = jax.ShapeDtypeStruct((1, 1568, 2, 16), jnp.float32)

    def temporaries(kernel):
        loss = lambda q, k, v: (kernel(q, k, v) ** 2).sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 5 * temporaries(chunked) < temporaries(dense)

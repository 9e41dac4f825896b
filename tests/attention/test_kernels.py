"""Every kernel equals dense, in values and gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit.attention import KERNELS, KernelRequirements
from vivit.attention.chunks import block_size, chunked
from vivit.attention.dropout import WeightDropout, weight_dropout
from vivit.attention.fused import by_cudnn, by_splash
from vivit.attention.kernels import auto, dense

TOLERANCE = 1e-5


def draw(n, m, *, sets=(2,), heads=2, kv_heads=None, channels=8, values=8, dtype=jnp.float32):
    rng = np.random.default_rng(n * 1000 + m)
    kv_heads = kv_heads or heads
    shapes = (
        (*sets, n, heads, channels),
        (*sets, m, kv_heads, channels),
        (*sets, m, kv_heads, values),
        (*sets, n, heads, values),
    )
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def value_and_grads(kernel, q, k, v, weights, *, bias=None, mask=None, soft_cap=None, dropout=None):
    """The output, and the gradients of a weighted sum of it (by the bias too, if there is one)."""
    rate, key_data = dropout or (None, None)
    run = compiled(kernel, soft_cap, rate, bias is None)
    grads, out = run(q, k, v, bias, weights, mask, key_data)
    return [out, *grads]


@cache
def compiled(kernel, soft_cap, rate, without_bias):
    """One jitted function per kernel and option, so that shapes compile once."""

    def loss(q, k, v, bias, weights, mask, key_data):
        options = {"bias": bias, "mask": mask, "soft_cap": soft_cap}
        options["dropout"] = None if rate is None else WeightDropout(rate, key_data)
        given = {name: value for name, value in options.items() if value is not None}
        out = kernel(q, k, v, **given)
        return (out.astype(jnp.float32) * weights).sum(), out

    by = (0, 1, 2) if without_bias else (0, 1, 2, 3)
    return jax.jit(jax.grad(loss, argnums=by, has_aux=True))


def assert_equal(kernel, inputs, **options):
    ours = value_and_grads(kernel, *inputs, **options)
    reference = value_and_grads(dense, *inputs, **options)
    for a, b in zip(ours, reference, strict=True):
        assert a.dtype == b.dtype
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE)


class Case:
    """Random lengths, heads, sets and options, all from one seed."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(1, 24, size=2)
        group, kv_heads = rng.integers(1, 4, size=2)
        heads = group * kv_heads
        sets = [(), (2,), (2, 3)][rng.integers(3)]
        self.inputs = draw(
            n, m, sets=sets, heads=heads, kv_heads=kv_heads, values=rng.integers(1, 9)
        )
        full = (*sets, heads, n, m)

        def shape():
            """One that broadcasts to all scores; its keys are always there."""
            kept = [length if rng.random() < 0.6 else 1 for length in full[:-1]]
            return (*kept[rng.integers(len(sets) + 1) :], m)

        self.options = {}
        if rng.random() < 0.5:
            self.options["bias"] = jnp.asarray(rng.normal(size=shape()), jnp.float32)
        if rng.random() < 0.5:
            self.options["mask"] = jnp.asarray(rng.random(shape()) < 0.6)
        if rng.random() < 0.4:
            self.options["soft_cap"] = float(rng.uniform(0.5, 5))
        self.chunk = int(rng.integers(1, 30))
        self.key = jax.random.key(seed)

    def dropout(self):
        return {**self.options, "dropout": weight_dropout(0.3, self.key)}


@pytest.mark.parametrize("seed", range(16))
def test_chunked_equals_dense_in_any_case(seed):
    case = Case(seed)
    options = case.dropout() if seed % 3 == 0 else case.options
    assert_equal(KERNELS[f"chunked({case.chunk})"], case.inputs, **options)


@pytest.mark.parametrize("seed", range(4))
def test_auto_equals_dense_in_any_case(seed):
    case = Case(100 + seed)
    assert_equal(auto, case.inputs, **case.options)


def brute(q, k, v, bias, mask, soft_cap):
    """One set, one score at a time, in float64."""
    n, h, c = q.shape
    out = np.zeros((n, h, v.shape[-1]))
    for head in range(h):
        key_head = head // (h // k.shape[1])
        for i in range(n):
            scores = k[:, key_head].astype(float) @ q[i, head] / np.sqrt(c)
            scores = soft_cap * np.tanh(scores / soft_cap) + bias[head, i]
            parts = np.where(mask[i], np.exp(scores), 0)
            if mask[i].any():
                out[i, head] = parts / parts.sum() @ v[:, key_head]
    return out


def test_dense_with_all_its_options_is_what_it_says():
    q, k, v, _ = draw(4, 6, sets=(), heads=4, kv_heads=2)
    rng = np.random.default_rng(0)
    bias, mask = rng.normal(size=(4, 4, 6)), rng.random((4, 6)) < 0.5
    mask[1] = False
    ours = dense(q, k, v, bias=jnp.asarray(bias, jnp.float32), mask=jnp.asarray(mask), soft_cap=0.7)
    expected = brute(*(np.asarray(x) for x in (q, k, v)), bias, mask, 0.7)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert not ours[1].any()  # sees nothing, gets nothing


def test_dropout_drops_its_share_and_keeps_the_mean():
    ones = jnp.ones((40, 50, 4, 8))
    marks = jnp.broadcast_to(jnp.eye(50)[None, :, None], (40, 50, 4, 50))
    out = dense(ones, ones, marks, dropout=weight_dropout(0.25, jax.random.key(0)))
    assert float((out == 0).mean()) == pytest.approx(0.25, abs=0.005)
    assert float(out.sum(axis=-1).mean()) == pytest.approx(1, abs=0.01)
    again = dense(ones, ones, marks, dropout=weight_dropout(0.25, jax.random.key(1)))
    assert (out != again).mean() > 0.2


def test_dense_is_softmax_of_scaled_scores():
    q, k, v, _ = draw(3, 5, sets=())
    scores = np.einsum("nhk,mhk->hnm", q, k) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(dense(q, k, v), np.einsum("hnm,mhc->nhc", weights, v), atol=1e-6)


@pytest.mark.parametrize("kernel", ["chunked", "auto"])  # fused and rings have their own tests
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (5, 12)])
def test_every_kernel_equals_dense(kernel, n, m):
    assert_equal(KERNELS[kernel], draw(n, m))


LENGTHS = [(16, 16), (13, 13), (3, 17), (17, 3)]


@pytest.mark.parametrize(
    ("n", "m", "chunk"),
    [(*LENGTHS[i % 4], chunk) for i, chunk in enumerate([1, 4, 5, 16, 100, 5, 4, 1])],
)
def test_chunked_equals_dense_for_lengths_that_do_and_do_not_divide(n, m, chunk):
    assert_equal(KERNELS[f"chunked({chunk})"], draw(n, m))


@pytest.mark.parametrize("sets", [(), (3,), (2, 3)])
def test_chunked_takes_any_number_of_sets_and_value_channels(sets):
    assert_equal(KERNELS["chunked(4)"], draw(9, 11, sets=sets, values=3))


def test_chunked_equals_dense_at_a_real_length():
    assert_equal(chunked, draw(1569, 1569, sets=(1,)))


def test_chunked_survives_scores_that_overflow_exp():
    q, k, v, _ = draw(9, 9)
    q = 1000 * q
    np.testing.assert_allclose(chunked(q, k, v, chunk=4), dense(q, k, v), atol=TOLERANCE)
    grads = jax.grad(lambda q, k, v: chunked(q, k, v, chunk=4).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


def bfloat16_errors(kernel, exact, **options):
    """Relative errors of values and gradients against float32 on the same rounded numbers."""
    rounded = [x.astype(jnp.bfloat16) for x in exact[:3]]
    inputs = [x.astype(jnp.float32) for x in rounded]
    truth = value_and_grads(dense, *inputs, exact[3], **options)
    results = value_and_grads(kernel, *rounded, exact[3], **options)
    return [
        np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
        for a, b in zip(results, truth, strict=True)
    ]


@pytest.mark.parametrize("options", [{}, {"soft_cap": 2.0}])
@pytest.mark.parametrize("n", [33, 128])
def test_chunked_in_bfloat16_is_no_worse_than_dense(n, options):
    exact = draw(n, n)
    ours = bfloat16_errors(KERNELS["chunked(8)"], exact, **options)
    for error, reference in zip(ours, bfloat16_errors(dense, exact, **options), strict=True):
        assert error <= 1.001 * reference


def test_chunked_needs_a_fraction_of_the_memory():
    shape = jax.ShapeDtypeStruct((1, 1568, 2, 16), jnp.float32)

    def temporaries(kernel):
        loss = lambda q, k, v: (kernel(q, k, v) ** 2).sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 5 * temporaries(chunked) < temporaries(dense)


def test_blocks_are_equal_and_need_no_padding_where_they_can():
    sizes = {3136: 448, 12544: 448, 50176: 512, 1569: 393, 196: 196, 1024: 512, 513: 171}
    assert {length: block_size(length, 512) for length in sizes} == sizes


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_the_tpu_kernel_equals_dense(heads, kv_heads, soft_cap):
    """Splash attention's own program, interpreted; lengths that are no multiple of its lanes."""
    splash = lambda q, k, v, **options: by_splash(q, k, v, interpret=True, **options)
    inputs = draw(13, 20, heads=heads, kv_heads=kv_heads)
    options = {} if soft_cap is None else {"soft_cap": soft_cap}
    assert_equal(splash, inputs, **options)


@pytest.mark.parametrize("sets", [(2,), (2, 3), ()])
def test_the_call_of_cudnn_equals_dense(sets):
    """Layouts and heads, by XLA's implementation of the same function."""
    by_xla = lambda q, k, v: by_cudnn(q, k, v, implementation="xla")
    assert_equal(by_xla, draw(5, 7, sets=sets, heads=4, kv_heads=2))
    assert_equal(by_xla, draw(5, 7, sets=sets, values=3))  # merged tokens have wider keys
    assert_equal(by_xla, draw(1, 7, sets=sets))  # cuDNN gets a second query


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [200, 197])
def test_cudnn_is_no_worse_than_dense_in_bfloat16(tokens):
    exact = draw(tokens, tokens, channels=64, values=64)
    ours = bfloat16_errors(KERNELS["fused"], exact)
    for error, reference in zip(ours, bfloat16_errors(dense, exact), strict=True):
        assert error <= 1.1 * reference


def test_fused_says_what_is_missing(monkeypatch):
    q, k, v, _ = draw(4, 4)
    with pytest.raises(ValueError, match='"fused".* needs an NVIDIA GPU .* or a TPU, .* for cpu'):
        KERNELS["fused"](q, k, v)
    why = lambda **needed: KERNELS["fused"].unsupported_reason(
        KernelRequirements(**{"channels": 64, **needed})
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert why(dtype="bfloat16") == ""
    assert "bfloat16, not float32" in why(dtype="float32")
    assert "multiples of 8 up to 128, not 20" in why(dtype="bfloat16", channels=20)
    assert "more channels than the keys' 64" in why(dtype="bfloat16", value_channels=72)
    assert "no sound bias, mask" in why(dtype="bfloat16", bias=True, mask=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert why(dtype="float32", soft_cap=True) == ""
    assert "no mask, dropout" in why(dtype="float32", mask=True, dropout=True)


@pytest.mark.parametrize("kernel", ["ring", "ulysses"])
def test_kernels_over_devices_say_that_they_need_some(kernel):
    q, k, v, _ = draw(8, 8)
    with pytest.raises(ValueError, match='set parallel.sequence above 1, or use kernel="chunked"'):
        KERNELS[kernel](q, k, v)
    assert "no dropout" in KERNELS[kernel].unsupported_reason(
        KernelRequirements(8, "float32", dropout=True)
    )


def test_blocks_may_be_given_in_the_name():
    kernel = KERNELS["chunked(3)"]
    assert kernel.options == {"chunk": 3}
    assert_equal(kernel, draw(7, 8))
    with pytest.raises(ValueError, match=r"written like chunked\(chunk=512\)"):
        KERNELS["chunked(size=3)"]
    with pytest.raises(ValueError, match=r"written like dense\(\)"):
        KERNELS["dense(3)"]


def test_auto_logs_what_it_chose_once(caplog):
    q, k, v, _ = draw(6, 11)
    with caplog.at_level("INFO", logger="vivit.attention.kernels"):
        for _ in range(3):
            auto(q, k, v)
    assert [r.message for r in caplog.records] == [
        'kernel "auto": dense for 6 queries and 11 keys, float32'
    ]

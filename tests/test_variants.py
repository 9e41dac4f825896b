"""The switches that go with any pattern, and token reduction, in whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import CLIPS, NO_CLASS_TOKEN, TINY, init, logits
from vivit.analysis import capture, rollout
from vivit.attention.dropout import weight_dropout
from vivit.attention.kernels import KERNELS, dense
from vivit.attention.reductions import (
    REDUCTIONS,
    add_log_sizes,
    add_sizes,
    apply_source,
    random_dropping,
    token_merging,
)
from vivit.attention.rotary import rotate
from vivit.cost import abstract_params
from vivit.model import stack_layers
from vivit.model.settings import FAMILIES

WIDE = {**TINY, "width": 24, "heads": 4, "clip": (4, 16, 8)}  # a grid of 2 x 4 x 2, 6 channels
WIDE_CLIPS = jax.random.normal(jax.random.key(1), (2, 4, 16, 8, 3))
SWITCHES = {
    "qk_norm": {"qk_norm": True},
    "rope": {"rope": "3d", "position": "none"},
    "soft_cap": {"soft_cap": 2.0},
    "kv_heads": {"kv_heads": 2},
    "registers": {"registers": 3},
}
PATTERN_FAMILIES = [
    *FAMILIES,
    "height",
    "causal_time",
    "dilated_time(1)",
    "window(1, 2, 2)",
    "neighbourhood(1, 3, 1)",
    "trajectory",
]


def refused(family, switch):
    no_registers = family in NO_CLASS_TOKEN or "(" in family
    no_registers |= family in ("height", "causal_time", "trajectory")
    return (switch, family) == ("kv_heads", "trajectory") or (
        switch == "registers" and no_registers
    )


def shallow(family):
    """The family with a single layer of time where it has one."""
    return "factorised_encoder(1)" if family == "factorised_encoder" else family


@pytest.mark.parametrize("switch", list(SWITCHES))
@pytest.mark.parametrize("family", PATTERN_FAMILIES)
def test_every_switch_goes_with_every_family_or_says_why_not(family, switch):
    config = {**WIDE, "depth": 1, "family": shallow(family), **SWITCHES[switch]}
    if refused(family, switch):
        with pytest.raises(ValueError, match="registers|kv_heads"):
            vivit.build(config)
        return
    model = vivit.build(config)
    chunked_model = model.with_settings(kernel="chunked")
    params = init(model)

    @jax.jit
    def run(params):
        loss = lambda p, m: (m.apply({"params": p}, WIDE_CLIPS) ** 2).sum()
        return jax.value_and_grad(loss)(params, model), loss(params, chunked_model)

    (value, grads), chunked = run(params)
    np.testing.assert_allclose(value, chunked, rtol=1e-4)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    without = {**config, **dict.fromkeys(SWITCHES[switch], None)}
    without = {k: v for k, v in without.items() if v is not None}
    plain = vivit.build({**without, "position": config.get("position", "learned")})
    if switch in ("rope", "soft_cap"):  # no parameter of its own: it must change the numbers
        assert not np.allclose(logits(model, params, WIDE_CLIPS), logits(plain, params, WIDE_CLIPS))
    else:
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        assert shapes(abstract_params(plain)) != shapes(params)


PAIRS = [
    {"readout": "cls", "rope": "3d"},
    {"registers": 2, "rope": "3d"},
    {"readout": "cls", "registers": 2, "qk_norm": True},
    {"kv_heads": 2, "rope": "3d", "qk_norm": True},
    {"readout": "cls", "kv_heads": 2, "soft_cap": 3.0},
]


@pytest.mark.parametrize("switches", PAIRS, ids=lambda pair: "-".join(pair))
@pytest.mark.parametrize("family", ["joint", "factorised_encoder", "divided"])
def test_switches_go_together(family, switches):
    """Extra tokens are not turned, not split off wrongly, and maps leave them out."""
    model = vivit.build({**WIDE, "depth": 1, "family": shallow(family), **switches})
    params = init(model)
    maps = capture(model, params, WIDE_CLIPS)
    np.testing.assert_allclose(maps.logits, logits(model, params, WIDE_CLIPS), atol=1e-4)
    for attention in maps.attentions:
        steps, places = (2, 8) if attention.stage == 0 else (2, 1)
        assert attention.weights().shape == (2, 4, steps, places, steps, places)
    np.testing.assert_allclose(rollout(maps).sum(axis=(1, 2)), 1, atol=1e-4)


def test_rotated_scores_depend_on_distances_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 2, 20)), jnp.float32) for _ in range(2))
    score = lambda a, b: jnp.einsum(
        "BTShk,BTShk->h",
        rotate(q, np.array(a, np.float32).reshape(1, 1, 3)),
        rotate(k, np.array(b, np.float32).reshape(1, 1, 3)),
    )
    near, far = score((1, 2, 3), (4, 2, 5)), score((6, 9, 0), (9, 9, 2))
    np.testing.assert_allclose(near, far, atol=1e-5)
    for other in ((5, 2, 5), (4, 3, 5), (4, 2, 6)):
        assert not np.allclose(near, score((1, 2, 3), other), atol=1e-3)
    np.testing.assert_allclose(rotate(q, np.zeros((1, 1, 3), np.float32)), q, atol=1e-6)


def test_positions_of_extra_tokens_are_zero():
    layout = vivit.build({**TINY, "family": "joint", "registers": 2}).config.stages[0].layout
    positions = layout.coordinates()
    assert positions.shape == (1, 10, 3)
    assert not positions[0, :2].any()
    np.testing.assert_array_equal(positions[0, 2:], np.argwhere(np.ones((2, 2, 2))))


def test_grouped_queries_are_repeated_keys_and_values():
    grouped = vivit.build({**WIDE, "family": "joint", "kv_heads": 2})
    params = init(grouped)
    repeated = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.repeat(x, 2, axis=-2)
            if any(getattr(k, "key", "") in ("key", "value") for k in path)
            else x
        ),
        params,
    )
    full = vivit.build({**WIDE, "family": "joint"})
    np.testing.assert_allclose(
        logits(grouped, params, WIDE_CLIPS), logits(full, repeated, WIDE_CLIPS), atol=1e-4
    )


def test_attention_dropout_acts_in_training_and_is_the_same_under_every_kernel():
    config = {**TINY, "family": "joint", "attention_dropout": 0.4}
    model = vivit.build(config)
    params = init(model)
    rngs = {"dropout": jax.random.key(0)}
    noisy = logits(model, params, rngs=rngs)
    assert not np.allclose(noisy, logits(model, params))
    chunked = vivit.build({**config, "kernel": "chunked"})
    np.testing.assert_allclose(logits(chunked, params, rngs=rngs), noisy, atol=1e-4)


def test_windows_shift_in_a_scan_as_in_a_loop():
    config = {**WIDE, "depth": 4, "family": "window(1, 2, 2)"}
    plain, scanned = vivit.build(config), vivit.build({**config, "scan": True})
    params = init(plain)
    np.testing.assert_allclose(
        logits(scanned, stack_layers(params), WIDE_CLIPS),
        logits(plain, params, WIDE_CLIPS),
        atol=1e-4,
    )
    rematted = vivit.build({**config, "remat": "full"})
    np.testing.assert_allclose(
        logits(rematted, params, WIDE_CLIPS), logits(plain, params, WIDE_CLIPS), atol=1e-4
    )


# --- token reduction ---

REDUCED = {
    "token_learner": "token_learner(3)",
    "random_dropping": "random_dropping(3)",
    "token_merging": "token_merging(2)",
}


def stages(reduce, attentions=("joint",), pool="mean", depth=2):
    return [
        {"depth": 1, "attentions": ("space", "time"), "pool": ""},
        {"depth": depth, "attentions": attentions, "pool": pool, "reduce": reduce},
    ]


@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_a_model_reduces_its_tokens_and_maps_come_back_on_the_clip(name, pool):
    model = vivit.build({**WIDE, "stages": stages(REDUCED[name], pool=pool)})
    params = init(model)
    maps = capture(model, params, WIDE_CLIPS)
    np.testing.assert_allclose(maps.logits, logits(model, params, WIDE_CLIPS), atol=1e-4)
    if pool != "max":  # whose gradient XLA gets wrong at the optimisation level of these tests
        loss = lambda p: (model.apply({"params": p}, WIDE_CLIPS) ** 2).sum()
        grads = jax.jit(jax.grad(loss))(params)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    first, last = maps.of(stage=1)
    flat = pool == "cls"  # a class token makes the clip one step of 16 places
    start = {"token_learner": 3, "random_dropping": 3, "token_merging": 16 if flat else 8}[name]
    assert first.q.shape[2] == start + flat
    assert last.q.shape[2] == start + flat - (2 if name == "token_merging" else 0)
    for attention in (first, last):
        weights = attention.weights()
        assert weights.shape == (2, 4, 2, 8, 2, 8)
        rows = np.asarray(weights.sum(axis=(-1, -2)))
        if name == "random_dropping":  # a dropped place asks nothing
            assert ((rows < 1e-6) | (rows > 0.1)).all()
            assert (rows > 0.1).sum() == 2 * 4 * (3 if flat else 6)
        elif not flat:
            np.testing.assert_allclose(rows, 1, atol=1e-4)
        asking = np.maximum((rows > 1e-6).sum(axis=3), 1)[..., None]  # without dropped places
        expected = weights.sum(axis=(3, 5)) / asking
        np.testing.assert_allclose(attention.over_time(), expected, atol=1e-4)
    shares = np.asarray(rollout(maps))
    assert shares.shape == (2, 2, 8)
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), 1, atol=1e-4)
    assert (shares >= 0).all()


def test_merging_by_hand():
    """Six tokens of one step in two sets: 0, 2, 4 and 1, 3, 5. Tokens 0 and 4 have a twin."""
    a, b, c, d = np.eye(4)
    keys = jnp.asarray([[[a, b, c, d, 0.9 * b + 0.1 * c, a]]], jnp.float32)
    sizes = jnp.asarray([[[1.0, 1, 1, 3, 1, 1]]])
    source = token_merging(keys=keys, sizes=sizes, remove=2)
    # What stays of the first set (2), then the second set: 1 + 4, 3, 5 + 0.
    expected = np.zeros((4, 6))
    expected[0, 2] = 1
    expected[1, [1, 4]] = 0.5
    expected[2, 3] = 1
    expected[3, [0, 5]] = 0.5
    np.testing.assert_allclose(source[0, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(add_sizes(source, sizes)[0, 0], [1, 2, 3, 2])
    heavy = token_merging(keys=keys, sizes=sizes.at[0, 0, 0].set(3), remove=2)
    np.testing.assert_allclose(heavy[0, 0, 3], [0.75, 0, 0, 0, 0, 0.25], atol=1e-6)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 6, 5)), jnp.float32)
    np.testing.assert_allclose(apply_source(source, x)[0, 0], expected @ x[0, 0], atol=1e-5)


@pytest.mark.parametrize("kernel", ["dense", "chunked"])
def test_a_token_of_size_s_weighs_as_s_equal_tokens(kernel):
    """Proportional attention, against the tokens repeated."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 1, 4, 2, 8)), jnp.float32) for _ in range(3))
    repeats = np.array([1, 3, 1, 2])
    wide_q, wide_k = add_log_sizes(q, k, jnp.asarray(repeats, jnp.float32)[None, None])
    ours = KERNELS[kernel](wide_q, wide_k, v)
    twice = [jnp.repeat(x, repeats, axis=2, total_repeat_length=7) for x in (k, v)]
    np.testing.assert_allclose(ours, dense(q, *twice), atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_merging_equal_tokens_changes_nothing(pool):
    """Sizes make up for it, in attention and in the mean: each step's tokens are all equal, and
    with extra tokens the clip is one step, so that steps lose different numbers of them."""
    steps = jax.random.normal(jax.random.key(3), (2, 2, 1, 1, 3))
    clips = jnp.broadcast_to(jnp.repeat(steps, 2, axis=1), (2, 4, 16, 8, 3))
    stage = {"depth": 4, "attentions": ("joint",), "pool": pool}
    config = {**WIDE, "position": "none", "registers": 1}
    plain = vivit.build({**config, "stages": [stage]})
    merged = vivit.build({**config, "stages": [{**stage, "reduce": "token_merging(3)"}]})
    params = init(plain)
    expected = logits(plain, params, clips)
    np.testing.assert_allclose(logits(merged, params, clips), expected, atol=1e-4)
    left = [a.q.shape[2] for a in capture(merged, params, clips).attentions]
    extra = 1 + (pool == "cls")
    assert left == [16 + extra, 13 + extra, 10 + extra, 7 + extra]


def test_dropping_keeps_other_places_for_every_clip_in_training_only():
    source = random_dropping(x=jnp.zeros((3, 2, 8, 1)), key=jax.random.key(0), tokens=5)
    assert source.shape == (3, 2, 5, 8)
    kept = np.asarray(source.argmax(axis=-1))
    assert (np.diff(kept, axis=-1) > 0).all()
    assert len({tuple(row) for row in kept.reshape(-1, 5)}) > 1
    model = vivit.build({**WIDE, "stages": stages("random_dropping(3)")})
    params = init(model)
    quiet = logits(model, params, WIDE_CLIPS)
    np.testing.assert_array_equal(quiet, logits(model, params, WIDE_CLIPS))
    noisy = [
        logits(model, params, WIDE_CLIPS, rngs={"dropout": jax.random.key(i)}) for i in range(2)
    ]
    assert not np.allclose(*noisy)


def test_dropping_nothing_changes_nothing():
    same = [{"depth": 2, "attentions": ("joint",), "pool": "mean"}]
    plain = vivit.build({**WIDE, "stages": same})
    kept = vivit.build({**WIDE, "stages": [{**same[0], "reduce": "random_dropping(8)"}]})
    params = init(plain)
    np.testing.assert_allclose(
        logits(kept, params, WIDE_CLIPS), logits(plain, params, WIDE_CLIPS), atol=1e-4
    )


WRONG = [
    ({"kv_heads": 3}, r"heads=4 is not a multiple of kv_heads=3; use one of \[1, 2, 4\]"),
    ({"width": 16, "rope": "3d"}, "rope rotates pairs .* a head has 4; .* at least 6"),
    ({"width": 28, "rope": "3d"}, "rope rotates pairs .* a head has 7"),
    ({"soft_cap": 0.0}, "soft_cap=0.0 must be above 0"),
    ({"registers": -1}, "registers=-1 must be 0 or more"),
    ({"registers": 2, "family": "axial"}, "family 'axial' can have no registers"),
    ({"activation": "elu"}, "unknown activation 'elu'; known: gelu, gelu_tanh"),
    ({"attention_dropout": 1.0}, r"attention_dropout=1.0 is not in \[0, 1\)"),
    (
        {"family": "window"},
        r"larger than the grid: steps=8 \(the grid has 2\), rows=7 .*use \"window\(2, 4, 2\)\"",
    ),
    ({"family": "neighbourhood(3, 3, 1)"}, "larger than the grid: steps=3"),
    ({"family": "dilated_time(3)"}, "stride=3 .* is larger than the grid's 2 time steps"),
    ({"family": "window(2"}, "options of pattern 'window' are written like"),
    ({"kernel": "fused"}, "\"fused\" can't|kernel 'fused' can't compute pattern 'space': .*cpu"),
    ({"kernel": "ring", "family": "trajectory"}, "'ring' can't compute pattern 'trajectory'"),
    ({"kv_heads": 1, "family": "split_heads"}, "split_heads needs kv_heads in multiples of 2"),
    (
        {"stages": [{"depth": 1, "attentions": "joint", "pool": "mean"}]},
        r"stages\[0\].attentions='joint' must be a list of a string",
    ),
    ({"stages": [{"depth": 1, "attentions": (), "pool": "mean"}]}, "has layers and no attentions"),
    (
        {"registers": 1, "stages": [stages("token_learner(4)", pool="")[1], stages("")[1]]},
        "stage 0 .* reduces over all time steps, .* give it a pool",
    ),
    ({"kernel": "ring", "attention_dropout": 0.1}, "'ring' can't .*no dropout"),
    ({"stages": stages("token_merging(5)")}, r"token_merging\(5\) per layer leaves nothing"),
    (
        {"stages": stages("token_learner(9)")},
        "tokens=9 of a reduction are more than .* 8 spatial tokens",
    ),
    ({"stages": stages("merging(2)")}, "unknown reduction 'merging'"),
    (
        {"stages": stages("token_merging(2)", ("height",))},
        "'height', which needs the spatial tokens",
    ),
    ({"stages": stages("token_merging(2)", ("time",))}, "'time', which needs the spatial tokens"),
    ({"stages": stages("token_merging(2)"), "scan": True}, "use scan=False"),
    ({"stages": stages("token_merging(2)", pool="")}, "their sizes end with it: give it a pool"),
    ({"stages": stages("token_merging(2)"), "rope": "3d"}, "rope needs every token's position"),
    ({"stages": stages("token_merging(2)"), "soft_cap": 2.0}, "use one of them"),
    (
        {"stages": [{**stages("token_learner(4)")[1], "pool": ""}, stages("token_learner(2)")[1]]},
        r"stage 1 reduces tokens that token_learner\(4\) has reduced",
    ),
    (
        {
            "stages": [
                {"depth": 1, "attentions": ("time",), "pool": "", "reduce": "random_dropping(2)"},
                {"depth": 1, "attentions": ("space",), "pool": "mean"},
            ]
        },
        "'time', which needs the spatial tokens",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_cannot_work_is_refused_when_the_model_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        vivit.build({**WIDE, **change})


def test_a_token_learner_may_feed_a_second_stage():
    two = [
        {"depth": 1, "attentions": ("space",), "pool": "", "reduce": "token_learner(2)"},
        {"depth": 1, "attentions": ("time",), "pool": "mean"},
    ]
    model = vivit.build({**WIDE, "stages": two})
    assert logits(model, init(model), WIDE_CLIPS).shape == (2, 5)


def test_maps_of_later_stages_come_back_on_the_clip():
    """Tokens that a first stage reduced, under a second stage that is one step a clip."""
    for pool in ("mean", "cls"):
        two = [
            {"depth": 1, "attentions": ("space",), "pool": "", "reduce": "random_dropping(2)"},
            {"depth": 1, "attentions": ("joint",), "pool": pool},
        ]
        model = vivit.build({**WIDE, "stages": two})
        maps = capture(model, init(model), WIDE_CLIPS)
        (later,) = maps.of(stage=1)
        weights = np.asarray(later.weights())
        assert weights.shape == (2, 4, 2, 8, 2, 8)
        kept = np.asarray(maps.sources[0, -1].sum(axis=2))  # [B, T, P]
        np.testing.assert_array_equal(weights.max(axis=(1, 4, 5)) > 0, kept > 0)
        np.testing.assert_array_equal(weights.max(axis=(1, 2, 3)) > 0, kept > 0)
        np.testing.assert_allclose(rollout(maps).sum(axis=(1, 2)), 1, atol=1e-4)


def test_a_tied_class_token_and_reduced_tokens():
    attentions = ("time", "space")
    stage = {"depth": 1, "attentions": attentions, "pool": "cls", "block": "divided"}
    model = vivit.build({**WIDE, "stages": [{**stage, "reduce": "token_learner(2)"}]})
    maps = capture(model, init(model), WIDE_CLIPS)
    for attention in maps.attentions:
        assert attention.weights().shape == (2, 4, 2, 8, 2, 8)
    np.testing.assert_allclose(rollout(maps).sum(axis=(1, 2)), 1, atol=1e-4)


def test_the_calls_of_one_pattern_drop_independently():
    """Half of split heads attend over time, half over space, on sets of equal numbers."""
    config = {**TINY, "clip": (8, 8, 8), "family": "split_heads", "attention_dropout": 0.5}
    model = vivit.build(config)
    drawn = []
    attend = lambda q, k, v, **options: drawn.append(options["dropout"].key_data) or q
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vivit.model.attention.make_attend", lambda *_: attend)
        clips = jnp.zeros((1, 8, 8, 8, 3))
        params = init(model)
        model.apply({"params": params}, clips, rngs={"dropout": jax.random.key(0)})
    assert len({tuple(np.asarray(words)) for words in drawn}) == 2 * TINY["depth"]


def test_a_kernel_that_is_no_softmax_keeps_its_own_maps():
    from vivit.attention import kernel

    try:

        @kernel("halves", softmax=False)
        def halves(q, k, v):
            """Every key weighs a half."""
            out = 0.5 * v.sum(axis=-3, keepdims=True)
            return jnp.broadcast_to(out, (*q.shape[:-1], v.shape[-1]))

        model = vivit.build({**TINY, "family": "joint", "kernel": "halves"})
        maps = capture(model, init(model), CLIPS)
        np.testing.assert_allclose(maps.weights(), 0.5, atol=1e-6)
    finally:
        del KERNELS._items["halves"]


def test_dropout_words_come_from_any_kind_of_key():
    for impl in ("threefry2x32", "rbg"):
        assert weight_dropout(0.1, jax.random.key(0, impl=impl)).key_data.shape == (2,)
    assert CLIPS.shape[0] == 2

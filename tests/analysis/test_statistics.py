"""Statistics over a split, ablations and comparisons of runs, against clips one by one."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import CLIPS, TINY, init
from vivit.analysis import ablation, capture, compare, rollout
from vivit.analysis.ablation import Part, ablate, change_frames, parts_of, without
from vivit.analysis.compare import cka, compare_encoders
from vivit.analysis.statistics import Statistics, half_interval, main, over_runs, statistics
from vivit.cli import split_names
from vivit.encoder import encoder_of_run
from vivit.model import stack_layers
from vivit.run import Run

WANT = ("distance", "entropy", "to_extra", "sinks(0.1)", "profile", "head_similarity")


@pytest.fixture(scope="module")
def encoder(tiny_run):
    return encoder_of_run(Run(tiny_run, "latest"))


@pytest.fixture(scope="module")
def found(encoder):
    return statistics(encoder, encoder.open("validation"), WANT)


def test_statistics_are_means_of_summaries_of_single_clips(tiny_run, encoder, found):
    run = Run(tiny_run, "latest", split="validation")
    clips, _ = run.clips([5, 2])
    kept = capture(encoder.model, encoder.params, clips, want=[*WANT, "full"])
    assert found.clips == tuple(range(16))
    for of in kept.arrays:
        arrays = kept[of]
        for name in ("distance_in_space", "distance_in_time", "entropy"):
            expected = np.moveaxis(arrays[name], 1, 0).mean(axis=(-1, -2))  # [clip, L, h]
            np.testing.assert_allclose(found.values[of][name][[5, 2]], expected, atol=1e-4)
            assert found.axes[name] == ("clip", "layer", "head")
        full = np.moveaxis(arrays["full"], 1, 0)  # [clip, L, h, Tq, Sq, Tk, Sk]
        keys = full.mean(axis=(3, 4)).reshape(*full.shape[:3], -1)
        most = np.sort(keys, axis=-1)[..., -max(1, round(0.1 * keys.shape[-1])) :].sum(-1)
        np.testing.assert_allclose(found.values[of]["sinks"][[5, 2]], most, atol=1e-5)
        over_time = full.sum(6).mean(4)
        steps = over_time.shape[-1]
        for offset in range(1 - steps, steps):
            expected = np.diagonal(over_time, offset, 3, 4).mean(-1)
            ours = found.values[of]["profile"][[5, 2]][..., offset + steps - 1]
            np.testing.assert_allclose(ours, expected, atol=1e-5)
        flat = full.reshape(*full.shape[:3], -1)
        flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
        expected = np.einsum("clhn,clgn->clhg", flat, flat)
        np.testing.assert_allclose(found.values[of]["head_similarity"][[5, 2]], expected, atol=1e-4)


def test_places_have_no_mean(encoder):
    with pytest.raises(ValueError, match="'top_place' holds places of tokens, which have no mean"):
        statistics(encoder, encoder.open("validation").at(range(8)), ["top(2)"])


def test_names_with_options_are_split_outside_of_brackets():
    text = "rollout, smoothgrad(16,0.3),rollout,top(2)"
    assert split_names(text) == ["rollout", "smoothgrad(16,0.3)", "top(2)"]


def test_statistics_are_the_same_on_eight_devices(tiny_run, tmp_path):
    arguments = [str(tiny_run), "--checkpoint=latest", "--clips=9", "--want=entropy,profile"]
    main([*arguments, f"--out={tmp_path / 'one.json'}"])
    command = [sys.executable, "-m", "vivit.analysis.statistics", *arguments]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, f"--out={tmp_path / 'eight.json'}"], env=environment, check=True)
    one, eight = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "eight"))
    assert one["clips"] == eight["clips"] == 9
    for of, named in one["attentions"].items():
        for name, values in named.items():
            for key in ("mean", "half_interval"):
                np.testing.assert_allclose(
                    eight["attentions"][of][name][key], values[key], atol=1e-5
                )
    with pytest.raises(ValueError, match="one.json exists; name a new file"):
        main([*arguments, f"--out={tmp_path / 'one.json'}"])


def test_intervals_are_over_clips_or_over_runs(found):
    values = np.array([1.0, 2.0, 4.0, 5.0])
    assert half_interval(values) == pytest.approx(3.182446 * np.std(values, ddof=1) / 2, rel=1e-5)
    assert np.isnan(half_interval(values[:1]))
    of = next(iter(found.values))
    shifted = {k: {n: x + 1 for n, x in v.items()} for k, v in found.values.items()}
    both = over_runs([found, Statistics(found.clips, shifted, found.axes)])
    np.testing.assert_allclose(both.mean(of, "entropy"), found.mean(of, "entropy") + 0.5, rtol=1e-5)
    np.testing.assert_allclose(both.half_interval(of, "entropy"), 12.7062 * 0.5, rtol=1e-4)
    assert both.axes["entropy"] == ("run", "layer", "head")
    assert f"| {of} | 0 | entropy |" in both.table()
    assert "profile" not in both.table()  # more than a number of each head
    with pytest.raises(ValueError, match="statistics of other clips"):
        over_runs([found, Statistics(found.clips[1:], found.values, found.axes)])
    fewer = {of: {"entropy": found.values[of]["entropy"][:, :1]}}
    with pytest.raises(ValueError, match="models of other layers"):
        over_runs([found, Statistics(found.clips, fewer, found.axes)])


def test_high_norms_are_against_the_median():
    model = vivit.build({**TINY, "family": "joint", "readout": "cls"})
    params = init(model)
    maps = capture(model, params, CLIPS)
    attention = maps.attentions[0]
    norms = np.asarray(attention.token_norms)[:, 0, 1:]  # without the class token
    full = np.asarray(attention.weights())
    high = norms > 1.1 * np.median(norms, axis=1, keepdims=True)
    assert 0 < high.mean() < 1
    expected = np.einsum("bhtsn,bn->bhts", full.reshape(2, 2, 2, 4, 8), high)
    kept = maps.keep("to_high_norm(1.1)")["stage 0, joint"]["to_high_norm"]
    np.testing.assert_allclose(kept[0], expected, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", ["divided", "factorised_encoder(2)"])
def test_a_part_that_is_off_adds_nothing(family, scan):
    """Against hooks in the forward pass: results of heads are 0, branches are not added."""
    model = vivit.build({**TINY, "family": family, "readout": "cls"})
    params = init(model)
    parts = parts_of(model)
    heads = [part for part in parts if part.layer == 1][1]
    whole = [part for part in parts if part.layer == 1 and part.head is None][-1]
    given = model.with_settings(scan=scan)
    stacked = stack_layers(params) if scan else params
    apply = jax.jit(lambda params: given.apply({"params": params}, CLIPS))
    before = np.asarray(apply(stacked))
    for part in (heads, whole):
        name = f"/stage_{part.stage}/layer_{part.layer}/attention_"

        def off(next_fun, args, kwargs, context, part=part, name=name):
            path = "/" + "/".join(context.module.path)
            of_part = path.startswith(name) and path.split("attention_")[1].split("/")[0].endswith(
                part.pattern
            )
            if of_part and part.head is None and path.count("/") == 3:
                out = next_fun(*args, **kwargs)
                return out._replace(out=0 * out.out) if context.method_name == "__call__" else out
            if of_part and part.head is not None and path.endswith("/out"):
                return next_fun(args[0].at[:, :, :, part.head].set(0), **kwargs)
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(off):
            expected = jax.jit(lambda: model.apply({"params": params}, CLIPS))()
        ours = np.asarray(apply(without(given, stacked, part)))
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        assert np.abs(ours - before).max() > 1e-3
    np.testing.assert_array_equal(apply(stacked), before)  # they were left as they are
    with pytest.raises(ValueError, match="no Part.*in the model; the last of its parts is Part"):
        without(model, params, Part(0, 9, "space"))


def test_ablation_of_a_run_is_by_the_clips_that_it_gets_right(tiny_run, tmp_path, capsys):
    run = Run(tiny_run, "latest")
    parts = parts_of(run.model, heads=False)[:2]
    accuracy, (first, _) = ablate(run, parts)
    clips, labels = run.clips(list(range(21)))
    apply = jax.jit(lambda params: run.model.apply({"params": params}, jnp.asarray(clips)))
    right = lambda params: np.argmax(apply(params), axis=1) == labels
    whole, less = right(run.params), right(without(run.model, run.params, parts[0]))
    assert accuracy == pytest.approx(whole.mean())
    assert first.accuracy == pytest.approx(less.mean())
    assert first.fall == pytest.approx(whole.mean() - less.mean())
    assert (first.lost, first.won) == ((whole & ~less).sum(), (less & ~whole).sum())
    path = tmp_path / "ablation.json"
    ablation.main(
        [f"--workdir={tiny_run}", "--checkpoint=latest", "--of=attentions", f"--out={path}"]
    )
    assert json.loads(path.read_text())["accuracy"] == accuracy
    assert "| without | accuracy |" in capsys.readouterr().out


def test_changed_frames_are_those_of_clips_changed_by_hand(tiny_run):
    run = Run(tiny_run, "latest")
    clips, labels = run.clips(list(range(21)))
    accuracy, found = change_frames(run)
    assert [x.name for x in found] == ["frames reversed", "frames frozen", "frames shuffled"]
    order = np.random.default_rng(0).permutation(16)
    changed = clips[:, ::-1], np.repeat(clips[:, 8:9], 16, axis=1), clips[:, order]
    params = jax.device_put(run.params)
    apply = jax.jit(lambda x: run.model.apply({"params": params}, x))
    for x, by_hand in zip(found, changed, strict=True):
        right = np.argmax(apply(jnp.asarray(by_hand)), axis=1) == labels
        assert x.accuracy == pytest.approx(right.mean())
        assert x.fall == pytest.approx(accuracy - right.mean())


def test_cka_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert cka(x, 3 * x @ turn + 2) == pytest.approx(1)
    many = rng.normal(size=(20, 500)), rng.normal(size=(20, 500))
    assert abs(cka(*many)) < 0.2  # without the debiasing it is about 0.96
    y = x[:, :3] + rng.normal(size=(20, 3))

    def hsic(a, b):  # Song et al. (2012), equation 5, with explicit matrices
        n, one = len(a), np.ones(len(a))
        k, m = (z @ z.T - np.diag(np.diag(z @ z.T)) for z in (a, b))
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))

    assert cka(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)))
    with pytest.raises(ValueError, match="the same for all clips"):
        cka(np.ones((5, 3)), x[:5])
    with pytest.raises(ValueError, match="at least 4, not 3 and 3"):
        cka(x[:3], y[:3])


def test_runs_are_compared_on_the_same_clips(tiny_run, encoder, tmp_path, capsys):
    other = encoder.with_random_parameters(1)
    found = compare_encoders([encoder, other], "validation", 6)
    run = Run(tiny_run, "latest", split="validation")
    clips, _ = run.clips(list(range(6)))
    maps = [np.asarray(rollout(capture(e.model, e.params, clips))) for e in (encoder, other)]
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*maps, strict=True)]
    np.testing.assert_allclose(found.rollouts, expected, atol=1e-3)
    inputs = []

    def keep(next_fun, args, kwargs, context):
        if (context.module.name or "").startswith("layer_") and context.method_name == "__call__":
            inputs.append(np.asarray(args[0].x).mean(axis=(1, 2)))  # it has no extra tokens
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(keep):
        encoder.model.apply({"params": jax.tree.map(jnp.asarray, encoder.params)}, clips)
    layers = len(inputs)
    with nn.intercept_methods(keep):
        other.model.apply({"params": jax.tree.map(jnp.asarray, other.params)}, clips)
    expected = [[cka(x, y) for y in inputs[layers:]] for x in inputs[:layers]]
    np.testing.assert_allclose(found.cka, expected, atol=1e-3)
    path = tmp_path / "alike.json"
    runs = [str(tiny_run)] * 2
    compare.main([*runs, "--checkpoint=latest", "--clips=6", f"--out={path}"])
    same = json.loads(path.read_text())
    np.testing.assert_allclose(np.diagonal(same["cka"]), 1, atol=1e-6)
    np.testing.assert_allclose(same["rollouts"], 1, atol=1e-5)
    assert "Correlation of rollouts: 1.000" in capsys.readouterr().out
    with pytest.raises(ValueError, match="clips=3 must be 4 to 16"):
        compare_encoders([encoder, other], "validation", 3)

"""The numbers of a model that version 0.1.0 and this one are compared by.

A result is a flat dict of arrays: NAME/logits, NAME/gradients/PATH, ... `shorten` keeps two numbers
of each array of parameters or gradients, which is what the files next to this one hold.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

TREES = ("init", "gradients", "params")  # results that are arrays by the path of a parameter


def draw_clips(clip, *, uint8=False, batch=2):
    """Random clips [B, F, H, W, 3]: floats of about unit size, or uint8."""
    rng = np.random.default_rng(7)
    if uint8:
        return rng.integers(0, 256, (batch, *clip, 3)).astype(np.uint8)
    return rng.normal(size=(batch, *clip, 3)).astype(np.float32)


def draw_params(shapes):
    """Random parameters for a tree of shapes. Each depends on its path and shape alone."""

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)

    flat = flatten_dict(shapes, sep="/")
    return unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()}, sep="/")


def shapes_of(model, clip):
    clips = jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), clips)["params"]


def describe(tree):
    """One line "path shape dtype" per parameter."""
    flat = flatten_dict(tree, sep="/")
    return "\n".join(f"{path} {flat[path].shape} {flat[path].dtype}" for path in sorted(flat))


def programs(model, clip, *, train=False, uint8=False):
    """Returns two functions, and what they take: key -> parameters that a model starts with, and
    parameters -> a weighted sum of the logits, with the logits.

    train: with dropout.
    """
    clips = draw_clips(clip, uint8=uint8)
    rngs = {"rngs": {"dropout": jax.random.key(3)}} if train else {}

    def start(key):
        return model.init(key, jnp.zeros((1, *clip, 3)))["params"]

    def total(params):
        logits = model.apply({"params": params}, clips, **rngs)
        return (logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)).sum(), logits

    return (start, jax.random.key(0)), (total, draw_params(shapes_of(model, clip)))


def outputs(model, clip, *, gradients=True, **how):
    """Returns logits, and the gradients of `programs`."""
    _, (total, params) = programs(model, clip, **how)
    if not gradients:
        return {"logits": np.asarray(jax.jit(total)(params)[1])}
    (_, logits), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    flat = flatten_dict(grads, sep="/")
    return {"logits": np.asarray(logits)} | {
        f"gradients/{path}": np.asarray(flat[path]) for path in sorted(flat)
    }


def initial(model, clip):
    """Returns the parameters that a model starts with from the key 0."""
    (start, key), _ = programs(model, clip)
    flat = flatten_dict(jax.jit(start)(key), sep="/")
    return {f"init/{path}": np.asarray(flat[path]) for path in sorted(flat)}


def maps(model, clip):
    """Returns rollout, and the weights of the first and the last attention over time steps."""
    from vivit.analysis import capture, rollout

    captured = capture(model, draw_params(shapes_of(model, clip)), jnp.asarray(draw_clips(clip)))
    first, last = captured.attentions[0], captured.attentions[-1]
    return {
        "rollout": np.asarray(rollout(captured)),
        "over_time_first": np.asarray(first.over_time()),
        "over_time_last": np.asarray(last.over_time()),
    }


def shorten(full):
    """Returns the arrays, but of parameters and gradients the two numbers of `fingerprint`."""
    short = {}
    for name, array in full.items():
        parts = name.split("/")
        kind = next((part for part in TREES if part in parts), None)
        if kind is None:
            short[name] = array
        else:
            at = "/".join(parts[: parts.index(kind) + 1])
            short.setdefault(at, []).append(fingerprint(array))
    return {name: np.asarray(value) for name, value in short.items()}


def fingerprint(array):
    """Returns the norm of an array and its product with a fixed wave of norm about 1."""
    flat = np.asarray(array, np.float64).ravel()
    wave = np.cos(1 + 0.7 * np.arange(flat.size)) / np.sqrt(max(flat.size / 2, 1))
    return [np.linalg.norm(flat), flat @ wave]


def source_file(case, folder, golden):
    """Returns the path of a golden file of public weights, written in its form below a folder."""
    from tests.pretrained import flax_files

    if case["file"].startswith("hf_"):
        return golden / case["file"]
    arrays = np.load(golden / f"{case['file']}.npz")
    params = flax_files.below(arrays, "source" if case["form"] else "params")
    path = folder / f"{case['file']}_{case['form']}"
    if case["form"] in ("", "scenic"):
        return flax_files.write_scenic(path, params)
    return getattr(flax_files, f"write_{case['form']}")(path.with_suffix(".npz"), params)


def loaded(weights, build):
    """Returns parameters, features and logits of what `pretrained.load` gives."""
    model = build(weights.model_config)
    clips = draw_clips(tuple(weights.model_config["clip"]))
    variables = {"params": weights.params}
    features = jax.jit(lambda v: model.apply(v, clips, method="features"))(variables)
    logits = jax.jit(lambda v: model.apply(v, clips))(variables)
    flat = flatten_dict(weights.params, sep="/")
    params = {f"params/{path}": np.asarray(flat[path]) for path in sorted(flat)}
    return {"features": np.asarray(features), "logits": np.asarray(logits), **params}


def see(clips):
    """Stands for a model in `predict(model, clips, extents)`: 5 numbers per clip."""
    weights = jnp.cos(jnp.arange(5 * clips[0].size) * 0.1).reshape(-1, 5) / clips[0].size
    return (clips.reshape(clips.shape[0], -1) / 255.0) @ weights


def shorten_clips(name, batches):
    """Returns batches with some pixels of the clips, and the mean of all."""
    short = {}
    for key, array in batches.items():
        if key.endswith("/clips"):
            flat = array.reshape(-1)
            short[f"{name}/{key}"] = flat[:: max(flat.size // 397, 1)]
            short[f"{name}/{key} mean"] = np.float64(flat.mean())
        else:
            short[f"{name}/{key}"] = array
    return short

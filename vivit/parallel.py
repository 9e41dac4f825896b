"""How a step runs on many devices: jit over a mesh, or pmap. The only file that names mesh axes."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vivit.attention.ring import SEQUENCE
from vivit.registry import Registry

AXES = ("data", "fsdp", SEQUENCE)
BATCH = PartitionSpec(AXES[:2])  # examples are split over both
FRAMES = PartitionSpec(AXES[:2], SEQUENCE)  # clips [B, F, H, W, C], over their frames too
VIEWS = PartitionSpec(AXES[:2], None, SEQUENCE)  # clips [B, V, F, H, W, C]
Rules = Sequence[tuple[str, Sequence[str | None]]]


class Parallel(NamedTuple):
    """A way to run on all devices. States and results look the same under each.

    abstract: jittable seed -> state, and a seed -> the state's shapes, dtypes and shardings.
    init: the same -> the state on the devices.
    put: a process's part of a batch on the host -> the batch on the devices.
    train: step(state, batch) -> (state, sums), compiled when first called. jit donates the state.
    evaluate: step(params, batch) -> sums, the same way.
    within: a function of global arrays -> the same, traced where kernels see the mesh.
    devices: how many the clips are split over; a batch must be a multiple of it.
    splits_tokens: whether tokens are split over devices too.
    """

    abstract: Callable[..., Any]
    init: Callable[..., Any]
    put: Callable[[Any], Any]
    train: Callable[..., Any]
    evaluate: Callable[..., Any]
    within: Callable[..., Any]
    devices: int
    splits_tokens: bool


MODES: Registry[Callable[..., Parallel]] = Registry("parallel mode")


def make_parallel(*, mode: str, data: int, fsdp: int, rules: Rules, sequence: int = 1) -> Parallel:
    """The devices of a config: data x fsdp x sequence, where data=-1 takes all that are left.

    sequence: over how many devices the tokens of a clip are split, by the kernels "ring" and
    "ulysses".
    """
    devices = jax.device_count()
    if fsdp < 1 or sequence < 1 or devices % (fsdp * sequence):
        raise ValueError(
            f"parallel.fsdp={fsdp} x sequence={sequence} does not divide the {devices} devices"
        )
    data = devices // (fsdp * sequence) if data == -1 else data
    if data * fsdp * sequence != devices:
        raise ValueError(
            f"parallel.data={data} x fsdp={fsdp} x sequence={sequence} is not the {devices} "
            "devices there are; use data=-1"
        )
    return MODES[mode](data=data, fsdp=fsdp, sequence=sequence, rules=rules)


def make_parallel_here(
    *, mode: str, data: int, fsdp: int, rules: Rules, sequence: int = 1
) -> Parallel:
    """As make_parallel, but on whatever devices there are: a checkpoint restores on any number."""
    sequence = sequence if jax.device_count() % sequence == 0 else 1
    fsdp = fsdp if jax.device_count() % (fsdp * sequence) == 0 else 1
    return make_parallel(mode=mode, data=-1, fsdp=fsdp, sequence=sequence, rules=rules)


@MODES.register("jit")
def jit_over_mesh(*, data: int, fsdp: int, sequence: int, rules: Rules) -> Parallel:
    """jit with shardings: the batch over all devices, arrays of the state as the rules say."""
    # Explicit axes, make_mesh's default since JAX 0.9, refuse the tubelet's reshape.
    mesh = jax.make_mesh((data, fsdp, sequence), AXES, axis_types=(AxisType.Auto,) * 3)
    examples, frames, views = (NamedSharding(mesh, spec) for spec in (BATCH, FRAMES, VIEWS))
    replicated = NamedSharding(mesh, PartitionSpec())

    def abstract(make, seed):
        shapes = jax.eval_shape(make, seed)
        return _placed(shapes, shard_by_rules(shapes, mesh, rules))

    def put_one(x):
        if x.ndim < 5:
            return jax.make_array_from_process_local_data(examples, x)
        if x.shape[-4] % sequence:
            raise ValueError(
                f"{x.shape[-4]} frames of a clip are not split evenly by parallel.{sequence=}"
            )
        return jax.make_array_from_process_local_data(frames if x.ndim == 5 else views, x)

    def put(host):
        return jax.tree.map(put_one, host)

    def within(function):
        def in_mesh(*arguments):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*arguments)

        return in_mesh if sequence > 1 else function

    def train(step, state):
        shardings = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(
            within(step),
            in_shardings=(shardings, None),  # the batch is where `put` put it
            out_shardings=(shardings, replicated),
            donate_argnums=0,
        )

    def evaluate(step):
        return jax.jit(within(step), out_shardings=replicated)

    init = partial(_init, abstract)
    clips_over = data * fsdp
    return Parallel(abstract, init, put, train, evaluate, within, clips_over, sequence > 1)


@MODES.register("pmap")
def pmap_over_devices(*, data: int, fsdp: int, sequence: int, rules: Rules) -> Parallel:
    """jax.pmap with the state on every device. The rules do not apply."""
    if fsdp != 1 or sequence != 1:
        raise ValueError(
            f'parallel.fsdp={fsdp} and sequence={sequence} need parallel.mode="jit"; pmap '
            "replicates the state and splits clips only"
        )
    local = jax.local_device_count()

    def abstract(make, seed):
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        shapes = jax.eval_shape(make, seed)
        everywhere = NamedSharding(mesh, PartitionSpec())
        return _placed(shapes, jax.tree.map(lambda _: everywhere, shapes))

    def put(host):
        return jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), host)

    def over_devices(step):
        def with_axis(state, batch):
            return step(state, batch, axis_name="devices")

        return jax.pmap(with_axis, "devices", in_axes=(None, 0), out_axes=None)

    def train(step, state):
        return over_devices(step)

    init = partial(_init, abstract)
    within = lambda function: function
    return Parallel(abstract, init, put, train, over_devices, within, data, False)


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
    )


def _init(abstract: Callable[..., Any], make: Callable[..., Any], seed: int) -> Any:
    """The state, made where its shardings say."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(make, seed))
    return jax.jit(make, out_shardings=shardings, static_argnums=0)(seed)


def shard_by_rules(shapes: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
    """Shardings of a tree: of each array by the first rule whose regex is found in its path.

    A rule's axes stand for the array's last dimensions; ("fsdp", None) splits the last but one.
    Arrays that no rule matches are replicated. ValueError lists all that do not divide.
    """
    problems = []

    def shard(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next((tuple(axes) for regex, axes in rules if re.search(regex, name)), ())
        unknown = sorted({axis for axis in axes if axis is not None} - set(AXES))
        if unknown:
            raise ValueError(f"parallel.rules name unknown mesh axes {unknown}; known: {AXES}")
        spec = (None,) * (array.ndim - len(axes)) + axes
        if len(spec) > array.ndim:
            problems.append(f"{name} {array.shape} has fewer dimensions than its rule {axes}")
            return None
        for length, axis in zip(array.shape, spec, strict=True):
            if axis and length % mesh.shape[axis]:
                problems.append(
                    f"{name} {array.shape}: {length} is no multiple of {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(shard, shapes)
    if problems:
        raise ValueError("parallel.rules do not fit these arrays:\n  " + "\n  ".join(problems))
    return shardings

"""How a step runs on many devices: jit over a mesh, or pmap."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vivit.mesh import CLIP_AXES, DATA, MESH_AXES, SEQUENCE
from vivit.registry import Registry
from vivit.settings import RULES, ParallelSettings, Rule

Devices = Sequence[Any]  # of this process and its peers, or of a topology that is compiled for


class Parallel(ABC):
    """A way to run on all devices. States and results look the same under each.

    mesh: the devices. devices: how many of them the clips are split over; a batch must be a
    multiple of it. splits_tokens: whether the tokens of a clip are split over devices too.
    part, parts: a process loads part `part` of the `parts` of each batch.
    """

    mesh: Mesh
    devices: int
    splits_tokens: bool
    part: int
    parts: int

    @abstractmethod
    def abstract(self, make: Callable[..., Any], seed: int) -> Any:
        """Returns the shapes, dtypes and shardings of what `make(seed)` returns."""

    @abstractmethod
    def abstract_batch(self, shapes: Any) -> Any:
        """Returns the shapes, dtypes and shardings that a batch of these shapes has in a step."""

    @abstractmethod
    def put(self, batch: Any) -> Any:
        """Returns this process's part of a batch on the host as the batch on the devices."""

    @abstractmethod
    def train(self, step: Callable[..., Any], state: Any) -> Any:
        """Returns step(state, batch) -> (state, sums), compiled when first called."""

    @abstractmethod
    def evaluate(self, step: Callable[..., Any]) -> Any:
        """Returns step(params, batch) -> sums, compiled when first called."""

    def ambient(self) -> AbstractContextManager[Any]:
        """Returns a context in which models are built, and steps traced, for these devices."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of global arrays, traced where kernels see the mesh."""

        def in_mesh(*arguments):
            with self.ambient():
                return function(*arguments)

        return in_mesh

    def init(self, make: Callable[..., Any], seed: int) -> Any:
        """Returns make(seed), made where its shardings say."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract(make, seed))
        return jax.jit(make, out_shardings=shardings, static_argnums=0)(seed)

    def place(self, params: Any) -> Any:
        """Returns arrays of the host on the devices, sharded as parameters of these paths are."""
        like = self.abstract(lambda _: params, 0)
        return jax.tree.map(lambda x, at: place_on(np.asarray(x), at.sharding), params, like)


def place_on(x: np.ndarray, sharding: Any) -> jax.Array:
    """Returns an array that every process has on its host as one global array on the devices."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


# An entry makes the Parallel of settings whose `data` is resolved, on given devices; it raises
# ValueError for settings that it does not take.
MODES: Registry[Callable[[ParallelSettings, Devices], Parallel]] = Registry("parallel mode")


def make_parallel(settings: ParallelSettings, devices: Devices | None = None) -> Parallel:
    """Returns the devices of a config: data x fsdp x tensor x sequence.

    devices: of a topology that is compiled for; None for those of this process and its peers.

    Raises ValueError if the devices cannot be split so.
    """
    devices = jax.devices() if devices is None else devices
    return MODES[settings.mode](with_data(settings, len(devices)), devices)


def with_data(settings: ParallelSettings, devices: int) -> ParallelSettings:
    """Returns the settings with `data` resolved for a number of devices.

    Raises ValueError if they cannot be split so.
    """
    sizes = {axis: getattr(settings, axis) for axis in MESH_AXES}
    rest = sizes[DATA] == -1  # data takes the devices that the other axes leave
    given = {axis: n for axis, n in sizes.items() if not (rest and axis == DATA)}
    named = "parallel." + " x ".join(f"{axis}={n}" for axis, n in given.items())
    if min(given.values()) < 1:
        raise ValueError(f"{named}: each must be at least 1")
    product = math.prod(given.values())
    if rest and devices % product:
        raise ValueError(f"{named} does not divide the {devices} devices")
    if not rest and product != devices:
        raise ValueError(
            f"{named} is not the {devices} devices that are present but {product}; use data=-1 for "
            "all that the other axes leave"
        )
    return replace(settings, data=devices // product) if rest else settings


def make_parallel_for_inference(settings: ParallelSettings) -> Parallel:
    """Returns the devices that are present, for a run that other devices may have trained:
    parameters restore on any number of them."""
    left, sizes = jax.device_count(), {}
    for axis in reversed(MESH_AXES[1:]):
        wanted = getattr(settings, axis)
        sizes[axis] = wanted if left % wanted == 0 else 1
        left //= sizes[axis]
    return make_parallel(replace(settings, data=-1, **sizes))


@MODES.register("jit")
class JitParallel(Parallel):
    """jit with shardings: the batch over all devices, arrays of the state as the rules say."""

    def __init__(self, settings: ParallelSettings, devices: Devices) -> None:
        shape = tuple(getattr(settings, axis) for axis in MESH_AXES)
        # Explicit axes, make_mesh's default since JAX 0.9, refuse the tubelet's reshape.
        types = (AxisType.Auto,) * len(MESH_AXES)
        self.mesh = jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
        self.rules = settings.rules
        self.devices = settings.data * settings.fsdp
        self.sequence = settings.sequence
        self.splits_tokens = settings.sequence > 1
        self.part, self.parts = _part_of_batches(self._sharding(PartitionSpec(CLIP_AXES)))

    def __str__(self) -> str:
        shape = " x ".join(f"{axis} {n}" for axis, n in self.mesh.shape.items())
        return f"jit over {shape}"

    def abstract(self, make: Callable[..., Any], seed: int) -> Any:
        shapes = jax.eval_shape(make, seed)
        return with_shardings(shapes, shard_by_rules(shapes, self.mesh, self.rules))

    def abstract_batch(self, shapes: Any) -> Any:
        return with_shardings(shapes, jax.tree.map(lambda x: self._of_batch(x.shape), shapes))

    def put(self, batch: Any) -> Any:
        shapes = {name: (x.shape[0] * self.parts, *x.shape[1:]) for name, x in batch.items()}
        at = {name: self._of_batch(shape) for name, shape in shapes.items()}
        return jax.make_array_from_process_local_data(at, batch, global_shape=shapes)

    def _of_batch(self, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of one array of a batch."""
        if len(shape) < 5:  # not clips
            return self._sharding(PartitionSpec(CLIP_AXES))
        if shape[-4] % self.sequence:
            raise ValueError(
                f"{shape[-4]} frames of a clip are not split evenly by "
                f"parallel.sequence={self.sequence}"
            )
        views = (None,) * (len(shape) - 5)  # clips [B, F, H, W, C] or [B, V, F, H, W, C]
        return self._sharding(PartitionSpec(CLIP_AXES, *views, SEQUENCE))

    def train(self, step: Callable[..., Any], state: Any) -> Any:
        """The state is donated."""
        shardings = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(
            self.within(step),
            in_shardings=(shardings, None),  # the batch is where `put` put it
            out_shardings=(shardings, self._sharding(PartitionSpec())),
            donate_argnums=0,
        )

    def evaluate(self, step: Callable[..., Any]) -> Any:
        return jax.jit(self.within(step), out_shardings=self._sharding(PartitionSpec()))

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)


def _part_of_batches(sharding: NamedSharding) -> tuple[int, int]:
    """Returns which part of a batch this process loads, and of how many: processes whose devices
    hold the same clips, as along `tensor`, load the same part."""
    rows: dict[int, set[int]] = {}
    clips = math.prod(sharding.mesh.shape[axis] for axis in CLIP_AXES)
    for device, (index,) in sharding.devices_indices_map((clips,)).items():
        rows.setdefault(device.process_index, set()).add(index.start or 0)
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    if sum(map(len, parts)) > clips:
        raise ValueError(
            f"the mesh {dict(sharding.mesh.shape)} gives some processes a part of the clips of "
            "others; let tensor x sequence divide, or be a multiple of, a process's devices"
        )
    held = rows.get(jax.process_index(), rows[min(rows)])  # of a topology, the first one's
    return parts.index(tuple(sorted(held))), len(parts)


@MODES.register("pmap")
class PmapParallel(Parallel):
    """jax.pmap with the state on every device."""

    splits_tokens = False

    def __init__(self, settings: ParallelSettings, devices: Devices) -> None:
        others = {axis: getattr(settings, axis) for axis in MESH_AXES[1:]}
        if any(n != 1 for n in others.values()) or settings.rules != RULES:
            named = ", ".join(f"{axis}={n}" for axis, n in others.items())
            raise ValueError(
                f'parallel.{named} and rules need parallel.mode="jit"; pmap replicates the state '
                "and splits clips only"
            )
        self.mesh = Mesh(np.array(devices), ("devices",))
        self.devices = settings.data
        processes = {device.process_index for device in devices}
        self.part, self.parts = jax.process_index(), len(processes)
        self._over_devices = NamedSharding(self.mesh, PartitionSpec("devices"))

    def __str__(self) -> str:
        return "pmap"

    def abstract(self, make: Callable[..., Any], seed: int) -> Any:
        shapes = jax.eval_shape(make, seed)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return with_shardings(shapes, jax.tree.map(lambda _: replicated, shapes))

    def abstract_batch(self, shapes: Any) -> Any:
        split = lambda shape: (self.devices, shape[0] // self.devices, *shape[1:])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(split(x.shape), x.dtype), shapes)

    def put(self, batch: Any) -> Any:
        local = self.devices // self.parts
        split = {name: x.reshape(local, len(x) // local, *x.shape[1:]) for name, x in batch.items()}
        return jax.make_array_from_process_local_data(self._over_devices, split)

    def train(self, step: Callable[..., Any], state: Any) -> Any:
        return self.evaluate(step)

    def evaluate(self, step: Callable[..., Any]) -> Any:
        def with_axis(state, batch):
            return step(state, batch, axis_name="devices")

        devices = self.mesh.devices.tolist()
        return jax.pmap(with_axis, "devices", in_axes=(None, 0), out_axes=None, devices=devices)  # pyright: ignore[reportArgumentType]


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns the shapes and dtypes of arrays with their shardings."""
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
    )


def shard_by_rules(shapes: Any, mesh: Mesh | AbstractMesh, rules: tuple[Rule, ...]) -> Any:
    """Returns the shardings of a tree: of each array by the first rule whose regex its path has.

    A rule's axes stand for the array's last dimensions; ("fsdp", None) splits the last but one.
    Arrays without a rule are replicated. Raises ValueError that lists all that do not divide, and
    rules that no array has; a model may lack what the default rules split.
    """
    problems, unused = [], {regex for regex, _ in rules} - {regex for regex, _ in RULES}

    def shard(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        unused.difference_update({regex for regex in unused if re.search(regex, name)})
        axes = next((tuple(axes) for regex, axes in rules if re.search(regex, name)), ())
        unknown = sorted({axis for axis in axes if axis is not None} - set(MESH_AXES))
        if unknown:
            raise ValueError(f"parallel.rules name unknown mesh axes {unknown}; known: {MESH_AXES}")
        spec = (None,) * (array.ndim - len(axes)) + axes
        if len(spec) > array.ndim:
            problems.append(f"{name} {array.shape} has fewer dimensions than its rule {axes}")
            return None
        for length, axis in zip(array.shape, spec, strict=True):
            if axis and length % mesh.shape[axis]:
                problems.append(
                    f"{name} {array.shape}: {length} is not a multiple of {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(shard, shapes)
    problems += [f"no array has the path of the rule {regex!r}" for regex in sorted(unused)]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        listed = "\n  ".join(problems[:10])
        raise ValueError(f"parallel.rules do not fit these arrays:\n  {listed}{more}")
    return shardings

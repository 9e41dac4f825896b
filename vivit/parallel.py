"""How a step runs on many devices: jit over a mesh, or pmap."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vivit.mesh import DATA, FSDP, MESH_AXES, SEQUENCE
from vivit.registry import Registry
from vivit.settings import RULES, ParallelSettings, Rule

CLIP_AXES = (DATA, FSDP)  # clips are split over both


class Parallel(ABC):
    """A way to run on all devices. States and results look the same under each.

    devices: how many the clips are split over; a batch must be a multiple of it.
    splits_tokens: whether the tokens of a clip are split over devices too.
    """

    devices: int
    splits_tokens: bool

    @abstractmethod
    def abstract(self, make: Callable[..., Any], seed: int) -> Any:
        """Returns the shapes, dtypes and shardings of what `make(seed)` returns."""

    @abstractmethod
    def put(self, batch: Any) -> Any:
        """Returns this process's part of a batch on the host as the batch on the devices."""

    @abstractmethod
    def train(self, step: Callable[..., Any], state: Any) -> Any:
        """Returns step(state, batch) -> (state, sums), compiled when first called."""

    @abstractmethod
    def evaluate(self, step: Callable[..., Any]) -> Any:
        """Returns step(params, batch) -> sums, compiled when first called."""

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of global arrays, traced where kernels see the mesh."""
        return function

    def init(self, make: Callable[..., Any], seed: int) -> Any:
        """Returns make(seed), made where its shardings say."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract(make, seed))
        return jax.jit(make, out_shardings=shardings, static_argnums=0)(seed)

    def place(self, params: Any) -> Any:
        """Returns arrays of the host on the devices, sharded as parameters of these paths are."""
        like = self.abstract(lambda _: params, 0)
        return jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), params, like)


# An entry makes the Parallel of settings whose `data` is resolved; it raises ValueError for
# settings that it does not take.
MODES: Registry[Callable[[ParallelSettings], Parallel]] = Registry("parallel mode")


def make_parallel(settings: ParallelSettings) -> Parallel:
    """Returns the devices of a config: data x fsdp x sequence.

    Raises ValueError if the devices cannot be split so.
    """
    devices, fsdp, sequence = jax.device_count(), settings.fsdp, settings.sequence
    if fsdp < 1 or sequence < 1 or devices % (fsdp * sequence):
        raise ValueError(
            f"parallel.fsdp={fsdp} x sequence={sequence} does not divide the {devices} devices"
        )
    data = devices // (fsdp * sequence) if settings.data == -1 else settings.data
    if data * fsdp * sequence != devices:
        raise ValueError(
            f"parallel.data={data} x fsdp={fsdp} x sequence={sequence} is not the {devices} "
            "devices that are present; use data=-1"
        )
    return MODES[settings.mode](replace(settings, data=data))


def make_parallel_for_inference(settings: ParallelSettings) -> Parallel:
    """Returns the devices that are present, for a run that other devices may have trained:
    parameters restore on any number of them."""
    devices = jax.device_count()
    sequence = settings.sequence if devices % settings.sequence == 0 else 1
    fsdp = settings.fsdp if devices % (settings.fsdp * sequence) == 0 else 1
    return make_parallel(replace(settings, data=-1, fsdp=fsdp, sequence=sequence))


@MODES.register("jit")
class JitParallel(Parallel):
    """jit with shardings: the batch over all devices, arrays of the state as the rules say."""

    def __init__(self, settings: ParallelSettings) -> None:
        shape = (settings.data, settings.fsdp, settings.sequence)
        # Explicit axes, make_mesh's default since JAX 0.9, refuse the tubelet's reshape.
        self.mesh = jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
        self.rules = settings.rules
        self.devices = settings.data * settings.fsdp
        self.sequence = settings.sequence
        self.splits_tokens = settings.sequence > 1

    def __str__(self) -> str:
        shape = " x ".join(f"{axis} {n}" for axis, n in self.mesh.shape.items())
        return f"jit over {shape}"

    def abstract(self, make: Callable[..., Any], seed: int) -> Any:
        shapes = jax.eval_shape(make, seed)
        return _with_shardings(shapes, shard_by_rules(shapes, self.mesh, self.rules))

    def put(self, batch: Any) -> Any:
        return jax.tree.map(self._put_one, batch)

    def _put_one(self, x: np.ndarray) -> jax.Array:
        if x.ndim < 5:  # not clips
            return self._put_as(x, PartitionSpec(CLIP_AXES))
        if x.shape[-4] % self.sequence:
            raise ValueError(
                f"{x.shape[-4]} frames of a clip are not split evenly by "
                f"parallel.sequence={self.sequence}"
            )
        views = (None,) * (x.ndim - 5)  # clips [B, F, H, W, C] or [B, V, F, H, W, C]
        return self._put_as(x, PartitionSpec(CLIP_AXES, *views, SEQUENCE))

    def _put_as(self, x: np.ndarray, spec: PartitionSpec) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, spec), x)

    def train(self, step: Callable[..., Any], state: Any) -> Any:
        """The state is donated."""
        shardings = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(
            self.within(step),
            in_shardings=(shardings, None),  # the batch is where `put` put it
            out_shardings=(shardings, self._replicated),
            donate_argnums=0,
        )

    def evaluate(self, step: Callable[..., Any]) -> Any:
        return jax.jit(self.within(step), out_shardings=self._replicated)

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.splits_tokens:
            return function

        def in_mesh(*arguments):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        return in_mesh

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


@MODES.register("pmap")
class PmapParallel(Parallel):
    """jax.pmap with the state on every device."""

    splits_tokens = False

    def __init__(self, settings: ParallelSettings) -> None:
        if settings.fsdp != 1 or settings.sequence != 1 or settings.rules != RULES:
            raise ValueError(
                f"parallel.fsdp={settings.fsdp}, sequence={settings.sequence} and rules need "
                'parallel.mode="jit"; pmap replicates the state and splits clips only'
            )
        self.devices = settings.data

    def __str__(self) -> str:
        return "pmap"

    def abstract(self, make: Callable[..., Any], seed: int) -> Any:
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        shapes = jax.eval_shape(make, seed)
        replicated = NamedSharding(mesh, PartitionSpec())
        return _with_shardings(shapes, jax.tree.map(lambda _: replicated, shapes))

    def put(self, batch: Any) -> Any:
        local = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)

    def train(self, step: Callable[..., Any], state: Any) -> Any:
        return self.evaluate(step)

    def evaluate(self, step: Callable[..., Any]) -> Any:
        def with_axis(state, batch):
            return step(state, batch, axis_name="devices")

        return jax.pmap(with_axis, "devices", in_axes=(None, 0), out_axes=None)  # pyright: ignore[reportArgumentType]


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
    )


def shard_by_rules(shapes: Any, mesh: Mesh | AbstractMesh, rules: tuple[Rule, ...]) -> Any:
    """Returns the shardings of a tree: of each array by the first rule whose regex its path has.

    A rule's axes stand for the array's last dimensions; ("fsdp", None) splits the last but one.
    Arrays without a rule are replicated. Raises ValueError that lists all that do not divide.
    """
    problems = []

    def shard(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
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
    if problems:
        raise ValueError("parallel.rules do not fit these arrays:\n  " + "\n  ".join(problems))
    return shardings

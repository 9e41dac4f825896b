"""Devices of accelerators that are not present, for which JAX compiles: TPU slices and GPUs."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import jax

from vivit.chips import CHIPS, Chip

log = logging.getLogger(__name__)

# Environment variables that libtpu needs on a machine without a TPU; those that are set are kept.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # a cloud's metadata server is not asked
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
GPU_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
MEGACORE = ("v4", "v5p")  # two cores that programs use as one device
GPUS_PER_HOST = 8


@dataclass(frozen=True)
class Gpu:
    """What XLA must know of a GPU: its name, compute capability, cores, and shared memory per core
    and per block in bytes. The figures are those of XLA's own descriptions of these chips."""

    name: str
    capability: int
    cores: int
    units: int
    shared: int
    shared_block: int
    cache: int
    gigahertz: float


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 41943040, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 52428800, 1.98),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 233472, 232448, 52428800, 1.98),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 233472, 232448, 132644864, 1.965),
}


@dataclass(frozen=True)
class Target:
    """Devices that are compiled for. name: as the user wrote it, "v5e:4x4"."""

    name: str
    chip: Chip
    devices: list[Any]


def make_target(name: str) -> Target:
    """Returns the devices that a name stands for: "v5e:4x4", "v5p:2x2x4", "h100:8".

    Raises ValueError for an unknown chip or topology, and where the compiler is not installed.
    """
    chip_name, _, shape = name.lower().partition(":")
    chip = CHIPS[chip_name]
    usage = f'like "v5e:4x4" or "v5p:2x2x4", or a number of GPUs, "h100:8", not {name!r}'
    if chip_name in GPUS:
        if not re.fullmatch(r"[1-9]\d*", shape):
            raise ValueError(f"--target is {usage}")
        return Target(name, chip, _gpu_devices(chip_name, chip, int(shape)))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ValueError(f"--target is {usage}")
    return Target(name, chip, _tpu_devices(chip_name, shape))


def only_compile() -> None:
    """Sets JAX up in a process that compiles for absent devices and runs nothing."""
    jax.config.update("jax_platforms", "cpu")  # this machine's devices are not needed
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read such programs back


def _tpu_devices(chip: str, shape: str) -> list[Any]:
    _require("libtpu", "python -m pip install libtpu")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip in MEGACORE else {}
    sizes = [int(n) for n in shape.split("x")]
    if max(sizes) == 1 or (len(sizes) == 2 and sizes[0] < 2):  # less than a host of 2 x 2 chips
        options["chips_per_host_bounds"] = (*sizes, 1, 1)[:3]
    return _topology(
        f"TPU topology {chip}:{shape}", TPU_ENVIRONMENT, "tpu", f"{chip}:{shape}", options
    )


def _gpu_devices(name: str, chip: Chip, count: int) -> list[Any]:
    ours = version("jaxlib")
    wheels = ("nvidia-cuda-nvcc-cu12", "nvidia-cuda-runtime-cu12", "nvidia-nvjitlink-cu12")
    _require(
        "jax_cuda12_plugin",
        f"python -m pip install --no-deps jax-cuda12-plugin=={ours} jax-cuda12-pjrt=={ours} "
        f"{' '.join(wheels)} nvidia-cuda-cupti-cu12 nvidia-cudnn-cu12 nvidia-cublas-cu12",
    )
    hosts = -(-count // GPUS_PER_HOST)
    if count % hosts:
        raise ValueError(
            f"{count} GPUs are not a multiple of {GPUS_PER_HOST}, the GPUs of a host; use "
            f"{name}:{hosts * GPUS_PER_HOST}"
        )
    options = {"topology": f"1x{hosts}x{count // hosts}", "target_config": gpu_config(name, chip)}
    return _topology(f"{count} x {name}", GPU_ENVIRONMENT, "cuda", "", options)


def gpu_config(name: str, chip: Chip) -> str:
    """Returns XLA's description of a GPU, a GpuTargetConfigProto as text."""
    gpu = GPUS[name]
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": gpu.shared,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.gigahertz,
        "device_memory_size": chip.memory,
        "shared_memory_per_block_optin": gpu.shared_block,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{key}: {value}" for key, value in info.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {gpu.capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        f'device_description_str: "{gpu.name}"'
    )


def _require(module: str, command: str) -> None:
    if find_spec(module) is None:
        raise ValueError(f"compiling for this target needs packages that are missing; {command}")


def _topology(
    what: str, environment: dict[str, str], platform: str, name: str, options: dict[str, Any]
) -> list[Any]:
    from jax.experimental import topologies

    for key, value in environment.items():
        os.environ.setdefault(key, value)
    try:
        with quiet():
            return list(topologies.get_topology_desc(name, platform, **options).devices)
    except (RuntimeError, jax.errors.JaxRuntimeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"there is no {what}: {first}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what compilers write to standard error to themselves: warnings that the machine has no
    TPU or GPU. Errors are exceptions, and are raised."""
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)

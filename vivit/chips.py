"""Accelerators: memory, and peak rates of compute, memory and interconnect.

Peaks are the vendors', dense, without sparsity. TPUs: Google Cloud's pages "TPU v4", "TPU v5e",
"TPU v5p" and "TPU v6e". NVIDIA: the data sheets of the A100 80GB SXM, H100 SXM, H200 SXM and HGX
B200.
Interconnects are the bytes that a chip can send at once over all its links: half of what a vendor
calls bidirectional. Read on 25 November 2026.
"""

import re
from dataclasses import dataclass

from vivit.registry import Registry

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    kinds: a regex of what JAX calls it, `device_kind`. memory: bytes that a program can use.
    flops: operations per second by the dtype of the computation, a multiply-add being two; float32
    is what JAX computes by default, one bfloat16 pass on TPUs and TF32 on GPUs.
    bandwidth: of its memory, bytes per second. interconnect: bytes per second that it can send.
    """

    platform: str
    kinds: str
    memory: int
    flops: dict[str, float]
    bandwidth: float
    interconnect: float


CHIPS: Registry[Chip] = Registry("chip")


def _tpu(name: str, kinds: str, gib: int, tera: int, gigabytes: int, gigabits: int):
    flops = {"bfloat16": tera * TERA, "float32": tera * TERA}
    chip = Chip("tpu", kinds, gib * 2**30, flops, gigabytes * GIGA, gigabits / 8 * GIGA)
    CHIPS.add(name, chip)


def _gpu(name: str, kinds: str, memory: int, tera: float, gigabytes: int, nvlink: int):
    flops = {"bfloat16": tera * TERA, "float32": tera / 2 * TERA}
    CHIPS.add(name, Chip("gpu", kinds, memory, flops, gigabytes * GIGA, nvlink / 2 * GIGA))


# Memory in GiB as the TPU compiler gives it to a program; of GPUs the whole memory, as XLA's
# descriptions of these chips have it.
_tpu("v4", "TPU v4", 32, 275, 1200, 2400)
_tpu("v5e", "TPU v5 lite|TPU v5e", 16, 197, 819, 1600)
_tpu("v5p", "TPU v5p?", 95, 459, 2765, 4800)
_tpu("v6e", "TPU v6 lite|TPU v6e", 32, 918, 1640, 3200)
_gpu("a100", "NVIDIA A100.*80GB", 85_100_068_864, 312.0, 2039, 600)
_gpu("h100", "NVIDIA H100 80GB HBM3", 84_942_979_072, 989.4, 3350, 900)
_gpu("h200", "NVIDIA H200.*", 151_397_597_184, 989.4, 4800, 900)
_gpu("b200", "NVIDIA B200.*", 191_514_411_008, 2250.0, 8000, 1800)


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip that JAX calls so, or None for one that the table does not have."""
    return next((CHIPS[n] for n in CHIPS if re.fullmatch(CHIPS[n].kinds, device_kind)), None)

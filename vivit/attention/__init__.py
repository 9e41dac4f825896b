"""Which tokens meet (patterns) and how softmax(QK)V is computed (kernels). Pure functions."""

from vivit.attention import chunks, fused, ring, windows  # noqa: F401  (their entries register)
from vivit.attention.kernels import KERNELS, Kernel, kernel
from vivit.attention.patterns import PATTERNS, Pattern, pattern
from vivit.attention.requirements import KernelRequirements

__all__ = ["KERNELS", "PATTERNS", "Kernel", "KernelRequirements", "Pattern", "kernel", "pattern"]

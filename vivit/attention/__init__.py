"""Which tokens meet (patterns) and how softmax(QK)V is computed (kernels). Pure functions."""

from vivit.attention.kernels import KERNELS, Kernel
from vivit.attention.patterns import PATTERNS, Pattern, pattern

__all__ = ["KERNELS", "PATTERNS", "Kernel", "Pattern", "pattern"]

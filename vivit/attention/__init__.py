"""Which tokens meet (patterns) and how softmax(QK)V is computed (kernels). Pure functions."""

import vivit.attention.windows  # noqa: F401  (its patterns register themselves)
from vivit.attention.demand import Demand
from vivit.attention.kernels import KERNELS, Kernel, kernel
from vivit.attention.patterns import PATTERNS, Pattern, pattern

__all__ = ["KERNELS", "PATTERNS", "Demand", "Kernel", "Pattern", "kernel", "pattern"]

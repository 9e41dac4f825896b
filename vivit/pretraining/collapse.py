"""What tells whether features have collapsed: to a point, or to few directions. A rank warns; a
probe decides."""

import numpy as np
from jaxtyping import Float


def effective_rank(features: Float[np.ndarray, "N D"]) -> float:
    """Returns exp of the entropy of the singular values of centred features: RankMe (2210.02885,
    section 3.1), which does not centre. From 1 to the smaller of N and D; 0 for equal features."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    if values.sum() <= 1e-12 * np.abs(features).max(initial=1e-300):
        return 0.0
    parts = values / values.sum()
    return float(np.exp(-(parts * np.log(np.maximum(parts, 1e-300))).sum()))


def spread(tokens: Float[np.ndarray, "N P D"]) -> float:
    """Returns the standard deviation over clips of tokens at the same place, averaged over places
    and channels. Over places as well, features that depend on the position alone would spread."""
    return float(tokens.std(axis=0, dtype=np.float64).mean())


def constant_error(tokens: Float[np.ndarray, "N P D"]) -> float:
    """Returns the mean absolute error of the best constant prediction at each place, the median."""
    return float(np.abs(tokens - np.median(tokens, axis=0)).mean())


def mean_cosine(features: Float[np.ndarray, "N D"]) -> float:
    """Returns the mean cosine of the features of two different clips."""
    count = len(features)
    if count < 2:
        return 1.0
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    return float((np.sum(unit.sum(axis=0) ** 2) - np.sum(unit**2)) / (count * (count - 1)))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit.objective import cross_entropy, means, top_k_hits
from vivit.tasks import Classify


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    labels = jnp.array([0], jnp.int32)
    assert float(cross_entropy(logits, labels)[0]) == pytest.approx(np.log(2))
    smooth = cross_entropy(logits, labels, label_smoothing=0.3)[0]
    target = np.array([0.8, 0.1, 0.1])
    assert float(smooth) == pytest.approx(-(target * np.log([0.5, 0.25, 0.25])).sum(), rel=1e-6)


def test_top_k_hits_and_ties():
    logits = jnp.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 1], [jnp.nan, 0, 0]])
    labels = jnp.array([0, 1, 2, 0, 0], jnp.int32)
    assert top_k_hits(logits, labels, k=1).tolist() == [1, 0, 0, 0, 0]
    assert top_k_hits(logits, labels, k=2).tolist() == [1, 1, 0, 0, 0]


def test_padding_counts_nowhere_and_batches_add_up():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    labels, task = jnp.arange(6, dtype=jnp.int32) % 4, Classify({"label": 4})

    def sums(part, valid):
        batch = {"labels": labels[part], "valid": jnp.asarray(valid, jnp.float32)}
        return task.sums(task.losses(logits[part], batch), logits[part], batch)

    whole = means([sums(slice(0, 6), [1] * 6)])
    padded = means([sums(slice(0, 4), [1] * 4), sums(slice(2, 6), [0, 0, 1, 1])])
    assert padded == pytest.approx(whole, rel=1e-5)
    assert whole["loss"] == pytest.approx(float(cross_entropy(logits, labels).mean()), rel=1e-5)

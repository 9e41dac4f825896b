# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Heads and distances across depth
#
# How far the heads of each layer look in space and in time, how spread their weights are, and how
# alike the heads of a layer are: means over clips, with 95 % intervals.

# %%
# Installs what is missing, where there is nothing but this checkout.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("vivit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "..[digits]"], check=True)
    sys.path.insert(0, os.path.abspath(".."))
if os.path.basename(os.getcwd()) == "notebooks":
    os.chdir("..")  # the data of a run are found from the root of the project

# %%
import matplotlib.pyplot as plt
import numpy as np

from vivit.analysis import capture, open_run
from vivit.analysis.statistics import half_interval

run = open_run(os.environ.get("VIVIT_RUN", "runs/moving_digits"))
clips, _ = run.clips(list(range(min(16, len(run.data)))))
want = ["distance", "entropy", "head_similarity", "sinks"]
kept = capture(run.model, run.params, clips, want=want, chunk=8)
print(kept)

# %% [markdown]
# ## Distance
#
# Each dot is a head: the mean distance of its queries to the keys, by weight (ViT, 2010.11929,
# section 4.5).

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for axis, name, unit in zip(
    axes, ("distance_in_space", "distance_in_time"), ("pixels", "frames"), strict=True
):
    layer = 0
    for of in kept.arrays:
        of_clips = np.asarray(kept[of][name]).mean(axis=(3, 4))  # [layer, clip, head]
        for values in of_clips:
            half = half_interval(values)
            at = layer + np.linspace(-0.2, 0.2, values.shape[1])
            axis.errorbar(at, values.mean(axis=0), half, fmt="o", markersize=4)
            layer += 1
    axis.set(title=name.replace("_", " "), ylabel=unit, xlabel="layer, of all stages")
    axis.set_ylim(bottom=0)
plt.show()

# %% [markdown]
# ## Entropy and similarity
#
# Entropy of a query's weights in nats: 0 for one key, log N for N keys alike. Similarity is the
# mean cosine between the maps of two heads of a layer.

# %%
for of in kept.arrays:
    entropy = np.asarray(kept[of]["entropy"]).mean(axis=(1, 3, 4))  # [layer, head]
    alike = np.asarray(kept[of]["head_similarity"]).mean(axis=1)
    heads = alike.shape[1]
    for layer, (values, matrix) in enumerate(zip(entropy, alike, strict=True)):
        others = (matrix.sum() - heads) / max(heads * (heads - 1), 1)
        shown = " ".join(f"{value:.2f}" for value in values)
        print(f"{of}, layer {layer}: entropy {shown}; similarity of heads {others:.2f}")

# %%
figure, axes = plt.subplots(
    1, len(kept.arrays), figsize=(4 * len(kept.arrays), 3), squeeze=False, layout="constrained"
)
for axis, of in zip(axes[0], kept.arrays, strict=True):
    shown = axis.imshow(np.asarray(kept[of]["entropy"]).mean(axis=(1, 3, 4)), cmap="magma")
    axis.set(title=of, xlabel="head", ylabel="layer")
    figure.colorbar(shown, ax=axis, label="entropy (nats)")
plt.show()

# %% [markdown]
# The same over a whole split, with intervals over clips or seeds:
# `python -m vivit.analysis.statistics RUN`. To save, compare and open them in xarray, see
# `Kept.save`, `kept - other` and `Kept.to_xarray`.

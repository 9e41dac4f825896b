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
# # Factorised against joint
#
# Two runs on the same clips: where each looks, how alike their maps are, and how alike their
# layers are. `VIVIT_RUN` and `VIVIT_RUN2` name the runs; the second one is made by
#
#     python -m vivit.train --config=configs/moving_digits.py --workdir=runs/joint \
#         --config.model.family=joint

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

from vivit.analysis import capture, heat_on_frames, open_run, overlay, rollout
from vivit.analysis.compare import cka, correlations

folders = [
    os.environ.get("VIVIT_RUN", "runs/moving_digits"),
    os.environ.get("VIVIT_RUN2", "runs/joint"),
]
runs = [open_run(folder) for folder in folders]
names = [run.model.config.settings.family for run in runs]
numbers = runs[0].one_of_each_class(8)
clips, labels = runs[0].clips(numbers)
maps = [capture(run.model, run.params, clips) for run in runs]
for title, *guesses in zip(
    runs[0].titles(labels),
    *(r.guesses(m.logits) for r, m in zip(runs, maps, strict=True)),
    strict=True,
):
    print(f"{title:14} -> {' | '.join(guesses)}")

# %% [markdown]
# ## The same clips
#
# The middle frame of each clip with the rollout of both runs.

# %%
figure, axes = plt.subplots(3, len(clips), figsize=(1.3 * len(clips), 4), squeeze=False)
middle = len(clips[0]) // 2
parts = [np.asarray(rollout(of_run)) for of_run in maps]
for column, clip in enumerate(clips):
    axes[0, column].imshow(clip[middle])
    for row, (run, part) in enumerate(zip(runs, parts, strict=True), start=1):
        config = run.model.config
        heat = heat_on_frames(part[column], grid=config.grid, clip=config.clip)
        axes[row, column].imshow(overlay(clip, heat)[middle])
for axis in axes.ravel():
    axis.set(xticks=[], yticks=[])
for row, name in enumerate(["clip", *names]):
    axes[row, 0].set_ylabel(name.split("(")[0], fontsize=8)
plt.show()

# %%
if parts[0].shape == parts[1].shape:
    alike = correlations(*parts)
    print(
        f"correlation of rollouts: {alike.mean():.2f}, from {alike.min():.2f} to {alike.max():.2f}"
    )

# %% [markdown]
# ## Layers
#
# Linear CKA between what the layers of both runs make of the clips: 1 for the same up to a
# rotation, 0 for unrelated. Here of the mean queries of each layer in a few clips; over a whole
# split it is `python -m vivit.analysis.compare RUN RUN2`.

# %%
many, _ = runs[0].clips(list(range(min(21, len(runs[0].data)))))
features = [
    [np.asarray(a.q).mean(axis=(1, 2)).reshape(len(many), -1) for a in found.attentions]
    for found in (capture(run.model, run.params, many) for run in runs)
]
matrix = [[cka(x, y) for y in features[1]] for x in features[0]]
plt.imshow(matrix, vmin=0, vmax=1)
plt.ylabel(names[0].split("(")[0])
plt.xlabel(names[1])
plt.colorbar(label="CKA")
plt.show()

# %% [markdown]
# `python -m vivit.analysis RUN RUN2` shows both side by side in the browser.

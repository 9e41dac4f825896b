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
# # Where a video transformer looks
#
# Attention maps of a trained run: train one with `make train`, or set `VIVIT_RUN` to the folder of
# another.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from vivit.analysis import capture, heat_on_frames, open_run, overlay, rollout

if os.path.basename(os.getcwd()) == "notebooks":
    os.chdir("..")  # a run's config names its data from the project's root
run = open_run(os.environ.get("VIVIT_RUN", "runs/moving_digits"))
config = run.model.config
print(f"{config.settings.family}, training step {run.step}")
print(f"token grid: {config.grid} time steps, rows, columns")

# %% [markdown]
# One test clip of each class, and the model's prediction.

# %%
clips, labels = run.clips(run.one_of_each_class(8))
maps = capture(run.model, run.params, clips)
titles = run.titles(labels)
for title, guess in zip(titles, run.guesses(maps.logits), strict=True):
    print(f"{title:14} -> {guess}")

# %% [markdown]
# ## Attention rollout
#
# Each token's part in what the classifier gets, through all layers (Abnar & Zuidema, 2005.00928),
# on one space-time grid for every family: a factorised encoder's two stages are chained.

# %%
parts = np.asarray(rollout(maps))  # [clips, T, S]
steps = config.grid[0]
frames = np.arange(steps) * (config.clip[0] // steps)
figure, axes = plt.subplots(
    len(clips), steps, figsize=(1.2 * steps, 1.25 * len(clips)), squeeze=False
)
for row, (clip, part) in enumerate(zip(clips, parts, strict=True)):
    heat = heat_on_frames(part, grid=config.grid, clip=config.clip)
    for column, frame in enumerate(frames):
        axes[row, column].imshow(overlay(clip, heat)[frame])
        axes[row, column].set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(titles[row], fontsize=8)
plt.show()

# %% [markdown]
# ## Between time steps
#
# The weight that each head gives from a time step (row) to a time step (column), averaged over the
# clips; one picture per layer that mixes time.

# %%
timely = [a for a in maps.attentions if "t" in a.pattern.axes]
for attention in timely:
    weights = np.asarray(attention.over_time()).mean(axis=0)  # [heads, T, T]
    figure, axes = plt.subplots(1, len(weights), figsize=(2 * len(weights), 2.3), squeeze=False)
    for head, axis in enumerate(axes[0]):
        axis.imshow(weights[head], vmin=0)
        axis.set(title=f"head {head}", xticks=[], yticks=[])
    figure.suptitle(attention.name, fontsize=9)
    plt.show()

# %% [markdown]
# ## How far heads look
#
# The entropy of a head's weights relative to the largest possible: 0 for one token, 1 for all
# tokens equally.

# %%
for attention in maps.attentions:
    weights = np.asarray(attention.weights())
    rows = weights.reshape(*weights.shape[:4], -1)
    entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(axis=-1).mean(axis=(0, 2, 3))
    keys = (rows > 0).sum(axis=-1).max()
    relative = entropy / np.log(max(keys, 2))
    print(f"{attention.name:28}", " ".join(f"{value:.2f}" for value in relative))

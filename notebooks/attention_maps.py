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

import jax
import matplotlib.pyplot as plt
import numpy as np

from vivit.analysis import capture, heat_on_frames, open_run, overlay, rollout

if os.path.basename(os.getcwd()) == "notebooks":
    os.chdir("..")  # a run's config names its data from the project's root
run = open_run(os.environ.get("VIVIT_RUN", "runs/moving_digits"))
print(f"{run.model.family}, step {run.step}; token grid (steps, rows, columns): {run.model.grid}")

# %% [markdown]
# One test clip of each class, and what the model says of it.

# %%
clips, labels = run.examples(run.one_of_each_class(8))
maps = capture(run.model, run.params, clips)
guesses = np.asarray(maps.logits).argmax(axis=-1)
names = run.split.class_names
for label, guess, p in zip(labels, guesses, jax.nn.softmax(maps.logits), strict=True):
    print(f"{names[label]:14} -> {names[guess]:14} {p[guess]:.1%}")

# %% [markdown]
# ## Attention rollout
#
# How much each tubelet reaches the readout through all layers (Abnar & Zuidema, 2005.00928), on one
# space-time grid whatever the family: a factorised encoder's two stages are chained.

# %%
shares = np.asarray(rollout(maps))  # [clips, steps, places]
steps = run.model.grid[0]
frames = np.arange(steps) * (run.model.clip[0] // steps)
figure, axes = plt.subplots(
    len(clips), steps, figsize=(1.2 * steps, 1.25 * len(clips)), squeeze=False
)
for row, (clip, share) in enumerate(zip(clips, shares, strict=True)):
    heat = heat_on_frames(share, grid=run.model.grid, clip=run.model.clip)
    for column, frame in enumerate(frames):
        axes[row, column].imshow(overlay(clip, heat)[frame])
        axes[row, column].set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(names[labels[row]], fontsize=8)
plt.show()

# %% [markdown]
# ## From step to step
#
# The weight that each head gives from a step (row) to a step (column), averaged over the clips; one
# picture a layer that mixes time.

# %%
timely = [a for a in maps.attentions if a.pattern != "space"]
for attention in timely:
    weights = np.asarray(attention.over_time()).mean(axis=0)  # [heads, steps, steps]
    figure, axes = plt.subplots(1, len(weights), figsize=(2 * len(weights), 2.3), squeeze=False)
    for head, axis in enumerate(axes[0]):
        axis.imshow(weights[head], vmin=0)
        axis.set(title=f"head {head}", xticks=[], yticks=[])
    figure.suptitle(attention.name, fontsize=9)
    plt.show()

# %% [markdown]
# ## How far heads look
#
# The entropy of a head's rows against the largest there is: 0 looks at one token, 1 at all alike.

# %%
for attention in maps.attentions:
    weights = np.asarray(attention.weights())
    rows = weights.reshape(*weights.shape[:4], -1)
    entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(axis=-1).mean(axis=(0, 2, 3))
    seen = (rows > 0).sum(axis=-1).max()
    relative = entropy / np.log(max(seen, 2))
    print(f"{attention.name:28}", " ".join(f"{value:.2f}" for value in relative))

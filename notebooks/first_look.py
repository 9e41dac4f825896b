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
# # First look
#
# What a run looks at: its predictions, attention rollout over the clip, and the weights between
# time steps. `make train` makes the run; `VIVIT_RUN` names another one.

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
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from vivit.analysis import capture, heat_on_frames, open_run, overlay, rollout
from vivit.analysis.figures import head_grid

run = open_run(os.environ.get("VIVIT_RUN", "runs/moving_digits"))
config = run.model.config
print(f"{config.settings.family}, training step {run.step}")
print(f"token grid: {config.grid} time steps, rows, columns")

# %% [markdown]
# A test clip of each class, and the model's prediction.

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
# on one space-time grid for every family: the two stages of a factorised encoder are chained. A
# region is coloured where it has more than a uniform map gives it, and dark where it has less.

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
# clips; one picture for each layer that mixes time steps.

# %%
for attention in (a for a in maps.attentions if "t" in a.pattern.axes):
    weights = np.asarray(attention.over_time()).mean(axis=0)  # [heads, T, T]
    figure, axes = plt.subplots(1, len(weights), figsize=(2 * len(weights), 2.3), squeeze=False)
    for head, axis in enumerate(axes[0]):
        axis.imshow(weights[head], vmin=0)
        axis.set(title=f"head {head}", xticks=[], yticks=[])
    figure.suptitle(attention.name, fontsize=9)
    plt.show()

# %% [markdown]
# ## One patch
#
# Where a token in the middle of the clip looks, in each layer and head of the first attention.
# `python -m vivit.analysis RUN` shows the same for every token, to click on.

# %%
query = tuple(n // 2 for n in config.grid)  # time step, row, column
display(head_grid(maps, maps.attentions[0].of_layers, query=query))

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
# # Is it faithful?
#
# A map that looks right may have nothing to do with what the model uses. Three tests: take out
# what a method ranks highest, and see whether the prediction falls; compare with where the object
# really is, which moving digits say; and compare with the maps of random parameters.

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

from vivit.analysis import attribute, open_run
from vivit.analysis.faithfulness import agreement, faithfulness, measure_run, table
from vivit.analysis.localisation import localisation

run = open_run(os.environ.get("VIVIT_RUN", "runs/moving_digits"))
clips, _ = run.clips(list(range(min(16, len(run.data)))))
classes = run.predict(clips).argmax(axis=1)
METHODS = ("rollout", "relevance", "grad_cam", "random", "centre")

# %% [markdown]
# ## Deletion and insertion
#
# The probability of the predicted class while places are taken out, those of the method's largest
# values first (Petsiuk et al., 1806.07421). A faithful method has a curve that falls early.

# %%
heats = {m: attribute(m, run.model, run.params, clips, classes) for m in METHODS}
curves = {m: faithfulness(run.model, run.params, clips, heat, classes) for m, heat in heats.items()}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for name, of_method in curves.items():
    parts = np.linspace(0, 1, of_method.deletion.shape[1])
    axes[0].plot(parts, of_method.deletion.mean(axis=0), label=name)
    axes[1].plot(parts, of_method.insertion.mean(axis=0), label=name)
axes[0].set(title="deletion: low is good", xlabel="part of places taken out", ylabel="probability")
axes[1].set(title="insertion: high is good", xlabel="part of places put in")
axes[0].legend()
plt.show()

# %% [markdown]
# ## Where the digit is
#
# The pointing game, and the intersection over union with the digit's real track. `random` and
# `centre` are what needs no model.

# %%
masks = run.masks(list(range(len(clips))))
if masks is not None:
    for name, heat in heats.items():
        found = localisation(np.asarray(heat), masks, run.model.config)
        print(f"{name:10} pointing {found['pointing'].mean():.2f}, IoU {found['iou'].mean():.2f}")

# %% [markdown]
# ## Random parameters
#
# The sanity check of Adebayo et al. (1810.03292): maps of a model that has learnt nothing should
# be other maps. Rank correlation of both, for each method:

# %%
untrained = run.random_params(1)
for name, heat in heats.items():
    other = attribute(name, run.model, untrained, clips, classes)
    print(f"{name:10} {agreement(np.asarray(heat), np.asarray(other)).mean():+.2f}")

# %% [markdown]
# All of it for a table with intervals over more clips:
# `python -m vivit.analysis.faithfulness --workdir=RUN`, and with `--random-seed=1`.

# %%
options = {"clips": len(clips), "region": "tubes", "fill": "diffused"}
print(table(measure_run(run, ["rollout", "random"], **options)))

# %% [markdown]
# The middle frame of some clips, with the largest tokens of rollout in its time step and the track.

# %%
figure, axes = plt.subplots(1, 6, figsize=(11, 2.2))
steps, rows, columns = run.model.config.grid
frames = run.model.config.tubelet[0]
for axis, clip, heat, i in zip(axes, clips, np.asarray(heats["rollout"]), range(6), strict=False):
    axis.imshow(clip[len(clip) // 2])
    if masks is not None:
        axis.contour(masks[i][len(clip) // 2], levels=[0.5], colors="tab:orange")
    y, x = divmod(int(heat[len(clip) // 2 // frames].argmax()), columns)
    height, width = run.model.config.tubelet[1:]
    axis.plot((x + 0.5) * width - 0.5, (y + 0.5) * height - 0.5, "c+", markersize=14)
    axis.set(xticks=[], yticks=[])
plt.show()

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
# # Your own video and weights
#
# `VIVIT_WEIGHTS` names weights of any kind that vivit reads: a run, a Scenic or HuggingFace
# checkpoint, a timm ViT (docs/pretrained.md), with or without a head. `VIVIT_VIDEO` names a video.

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
import tempfile
from pathlib import Path

# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import vivit
from vivit.analysis import attribute, capture, heat_on_frames, open_run, overlay, rollout
from vivit.analysis.figures import space_time_stack, write_overlay
from vivit.analysis.windows import clips_of_video
from vivit.pretrained import load

weights = os.environ.get("VIVIT_WEIGHTS", "runs/moving_digits")
found = load(weights)
model, params = vivit.build(found.model_config), found.params
config = model.config
print(f"{config.settings.family}, clips of {config.clip}, {config.classes} classes")

# %% [markdown]
# Without a video of your own, a clip of the run's data is written as one.

# %%
video = os.environ.get("VIVIT_VIDEO")
if video is None:
    frames = open_run(weights).clips([0])[0][0]
    video = write_overlay(Path(tempfile.mkdtemp()) / "digits.mp4", frames, rate=25)
clips, seconds = clips_of_video(video, model, clips=4)
begins = ", ".join(f"{at:.1f} s" for at in seconds)
print(f"{len(clips)} clips of {Path(video).name}, which begin at {begins}")

# %% [markdown]
# ## Where it looks
#
# Rollout needs no classes, so it is there for encoders without a head too.

# %%
maps = capture(model, params, clips)
heats = [
    heat_on_frames(part, grid=config.grid, clip=config.clip) for part in np.asarray(rollout(maps))
]
for clip, heat in zip(clips[:2], heats, strict=False):
    display(space_time_stack(clip, heat, frames=6))

# %% [markdown]
# ## What the score is made of
#
# For weights with a head: the most probable classes, and the relevance (Chefer et al., 2103.15679)
# of the first one.

# %%
if config.classes:
    logits = np.asarray(maps.logits)
    classes = logits.argmax(axis=1)
    for at, row in zip(seconds, logits, strict=True):
        print(f"{at:5.1f} s: classes {', '.join(map(str, np.argsort(-row)[:3]))}")
    relevance = np.asarray(attribute("relevance", model, params, clips, classes))
    figure, axes = plt.subplots(1, len(clips), figsize=(3 * len(clips), 3), squeeze=False)
    for axis, clip, part in zip(axes[0], clips, relevance, strict=True):
        heat = heat_on_frames(part, grid=config.grid, clip=config.clip)
        axis.imshow(overlay(clip, heat)[len(clip) // 2])
        axis.set(xticks=[], yticks=[])
    plt.show()

# %% [markdown]
# Of a run, `python -m vivit.analysis RUN --video=FILE` is a page to click on, and
# `python -m vivit.analysis.moments --workdir=RUN --video=FILE` finds the moments of a long film.

"""A trained run, opened to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vivit.config import read_workdir
from vivit.data.pipeline import Data, ViewLoader
from vivit.data.sources import Split
from vivit.data.views import Views
from vivit.evaluate import restore
from vivit.model import ViViT


@dataclass(frozen=True)
class Run:
    """A run's folder and config, its model with the parameters of a checkpoint, and a split."""

    workdir: Path
    config: Any
    model: ViViT
    params: Any
    step: int
    split: Split

    def examples(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Clips uint8 [B, F, H, W, 3] and labels [B] of the split, by their number."""
        frames, *size = self.config.model.clip
        source = Data(**self.config.data)
        load = ViewLoader(self.split, frames, 1, source.sampler)
        examples = [load(index) for index in indices]
        for index, example in zip(indices, examples, strict=True):
            if not example["mask"]:
                raise ValueError(f"{self.split.reader.name(index)} can't be read: leave it out")
        clips = np.stack([e["clips"] for e in examples])
        extents = np.stack([e["extents"] for e in examples])
        crop = Views(**source.views).crop(self.split, tuple(size))
        seen = crop(jnp.asarray(clips[:, 0]), jnp.asarray(extents), 0.5)
        return np.asarray(seen), np.array([e["labels"] for e in examples])

    def one_of_each_class(self, limit: int) -> list[int]:
        """Numbers of the first clip of each class, then of the next clips, up to `limit`."""
        first: dict[int, int] = {}
        for index in range(min(len(self.split), 64 * len(self.split.class_names))):
            first.setdefault(self.split.label_of(index), index)
        chosen = [first[key] for key in sorted(first)]
        return (chosen + [i for i in range(len(self.split)) if i not in chosen])[:limit]


def open_run(workdir: str | Path, *, checkpoint: str = "best", split: str = "test") -> Run:
    """Opens a folder that vivit.train made, at the checkpoint "best", "latest" or a step."""
    config = read_workdir(workdir)
    data = Data(**config.data).open(split)
    model, state, _ = restore(Path(workdir), config, checkpoint=checkpoint)
    params = jax.device_get(state.eval_params)
    return Run(Path(workdir), config, model, params, int(state.step), data)

"""Any config made small: a few seconds that say whether its parts fit each other."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from vivit.data.settings import AugmentSettings, DataSettings
from vivit.model.resolve import resolve
from vivit.model.settings import ModelSettings
from vivit.pretrained.settings import InitSettings
from vivit.settings import Config
from vivit.tasks import make_objective

GRID = 8  # time steps, rows and columns of tokens at most
PATCH = 4  # pixels of a tubelet's height and width at most
FRAMES = 48  # of a film
STEPS = 2
MANIFEST = "films.csv"


def quicktest(config: Config) -> Config:
    """Returns a config with the same parts and few numbers: a narrow model of two layers and at
    most 8 x 8 x 8 tokens, two steps, one validation, one checkpoint, and this machine's devices.

    Its data are those of `with_films`; weights to start from are left out.
    """
    model, side = small_model(config.model), max(config.model.clip[1:])
    shrunk = max(model.clip[1:]) / side
    each = 2 * config.data.repeats * config.train.accumulate  # clips, of which mixup pairs two
    return replace(
        config,
        model=model,
        init=InitSettings(),
        data=small_data(config.data, shrunk, batch_size=each * jax.device_count()),
        augment=small_augment(config.augment, shrunk),
        optim=replace(
            config.optim,
            lr_batch_size=0,  # of so few clips it would be below the floor of a schedule
            warmup_steps=min(config.optim.warmup_steps, STEPS - 1),
        ),
        train=replace(
            config.train,
            steps=STEPS,
            epochs=0.0,
            log_every=1,
            eval_every=STEPS,
            checkpoint_every=STEPS,
        ),
        parallel=replace(config.parallel, data=-1, fsdp=1, tensor=1, sequence=1),
    )


def small_model(settings: ModelSettings) -> ModelSettings:
    """Returns a model with the same parts and classes; kernel "auto" is any machine's."""
    settings = replace(settings, kernel="auto")
    resolved = resolve(settings)
    tubelet = resolved.tubelet[0], *(min(side, PATCH) for side in resolved.tubelet[1:])
    grid = (min(n, GRID) for n in resolved.grid)
    clip = tuple(n * size for n, size in zip(grid, tubelet, strict=True))
    return replace(
        settings,
        size="",
        width=48,
        depth=settings.depth if settings.stages else 2,
        heads=2,
        mlp_dim=96,
        kv_heads=settings.kv_heads and 1,
        tubelet=tubelet,
        clip=clip,
    )


def small_augment(settings: AugmentSettings, shrunk: float) -> AugmentSettings:
    if settings.short_side is None:
        return settings
    low, high = (math.ceil(pixels * shrunk) for pixels in settings.short_side)
    return replace(settings, short_side=(low, high))


def small_data(settings: DataSettings, shrunk: float, *, batch_size: int) -> DataSettings:
    views, canvas = settings.views, settings.canvas
    if views.short_side:
        views = replace(views, short_side=math.ceil(views.short_side * shrunk))
    if canvas:
        canvas = (math.ceil(canvas[0] * shrunk), math.ceil(canvas[1] * shrunk))
    small = {"train_clips": 0, "views": views, "canvas": canvas, "short_side": None}
    return replace(settings, workers=0, batch_size=batch_size, **small)


def with_films(config: Config, folder: Path) -> Config:
    """Returns a quick config that reads the films of `write_films`."""
    data = replace(config.data, name=str(folder / MANIFEST), root=str(folder))
    return replace(config, data=data)


def write_films(config: Config, folder: Path) -> None:
    """Writes short films with the labels of a quick config into a folder, unless it has them: a
    batch to train on, and three clips of other splits."""
    # Training does without them.
    from av import VideoFrame

    from vivit.data.decode import CLOCK
    from vivit.data.manifest import Classes, ClipRow, Manifest
    from vivit.dataprep.encode import ENCODERS
    from vivit.dataprep.manifest_files import write_manifest

    data = config.data
    manifest, rng = folder / MANIFEST, np.random.default_rng(0)
    if manifest.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    side = 2 * math.ceil(0.6 * max(config.model.clip[1:]))
    ticks, clips = [CLOCK // 25 * i for i in range(FRAMES)], []
    task = make_objective(config.task.name, config.heads)
    labelled = {label: config.heads.get(label, 2) for label in task.labels}
    counts = {data.splits[0]: data.batch_size, data.splits[1]: 3, "test": 3}
    for split, count in counts.items():
        for i in range(count):
            picture = rng.integers(0, 256, (side // 4, side // 2, 3), np.uint8)
            picture = picture.repeat(4, axis=0).repeat(4, axis=1)  # a film moves over it
            seen = (np.roll(picture, 4 * t, axis=1)[:, : side + side // 4] for t in range(FRAMES))
            frames = (VideoFrame.from_ndarray(np.ascontiguousarray(x)) for x in seen)
            _, film = ENCODERS["h264"].encode(frames, ticks, side, 30)
            (folder / f"{split}_{i}.mp4").write_bytes(film)
            labels = {label: i % classes for label, classes in labelled.items()}
            clips.append(ClipRow(f"{split}_{i}.mp4", split, labels))
    names = {
        label: Classes(tuple(f"class {i}" for i in range(classes)))
        for label, classes in labelled.items()
    }
    write_manifest(manifest, Manifest(tuple(clips), names))

"""Checkpoints of a run: its training state, the data's position and the config, by Orbax."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


class Checkpoints:
    """The checkpoints in a folder: the newest `keep`, and the one with the best `best` metric.

    Saving is asynchronous; a checkpoint exists entirely or not at all.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, best: str = "top1") -> None:
        self.folder = Path(folder).absolute()
        self._best = best

        def score(metrics: dict[str, float]) -> float:
            return metrics.get(best, -float("inf"))

        policy = policies.AnyPreservationPolicy(
            [policies.LatestN(keep), policies.BestN(n=1, get_metric_fn=score)]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            # Named items, not the single-item form: that one can be killed into a state from
            # which nothing restores (orbax 0.12).
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=score,  # without it orbax drops the metrics
                enable_async_checkpointing=True,
            ),
        )

    def save(
        self, step: int, state: Any, *, data: dict, config: dict, metrics: dict[str, float] | None
    ) -> None:
        """Starts to write a checkpoint; metrics: of a validation at this step, or None."""
        if step in self._manager.all_steps():
            return
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(config),
            ),
            metrics=metrics or {},
            force=True,
        )
        if not saved:  # orbax says so by its return value only
            raise RuntimeError(f"step {step} was not saved; the newest is {self.latest()}")

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """Returns the state, placed and typed as the arrays of `like`, and the data's position.

        Raises ValueError that lists every array that is missing, unexpected or of another shape.
        """
        saved = self._manager.item_metadata(step)["state"]
        _check_same(_shapes(saved), _shapes(like), f"checkpoint {step} in {self.folder}")
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["data"]

    def read_params(self, step: int) -> Any:
        """Returns the parameters of a checkpoint as NumPy arrays: the averaged ones, if it has any.

        The model is not needed, and the rest of the state is not read.
        """
        saved = self._manager.item_metadata(step)["state"]
        name = "averaged" if saved.get("averaged") else "params"
        wanted = {
            name: jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), saved[name])
        }
        folder = self.folder / str(step) / "state"
        with ocp.PyTreeCheckpointer() as reader:
            read = reader.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item={name: saved[name]}, restore_args=wanted, partial_restore=True
                ),
            )
        return read[name]

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def resolve(self, name: str) -> int:
        """Returns the step of "latest", "best" or a number.

        Raises ValueError that lists the steps that exist.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise ValueError(f"no checkpoint in {self.folder}; train one with vivit.train")
        if name == "latest":
            return steps[-1]
        if name == "best":
            metrics = {step: self._manager.metrics(step) or {} for step in steps}
            scored = {step: m[self._best] for step, m in metrics.items() if self._best in m}
            if not scored:
                raise ValueError(
                    f"no checkpoint in {self.folder} has a score yet; choose the checkpoint "
                    f"latest or one of {steps}"
                )
            return max(scored, key=lambda step: (scored[step], step))
        if name.isdigit() and int(name) in steps:
            return int(name)
        raise ValueError(f"no checkpoint {name!r} in {self.folder}; use latest, best or {steps}")

    def close(self) -> None:
        """Waits until all is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    # Simple names, keys alone: orbax's metadata has dicts where the state has records.
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _check_same(saved: dict[str, tuple], wanted: dict[str, tuple], what: str) -> None:
    lines = [f"missing: {name} {wanted[name]}" for name in sorted(wanted.keys() - saved.keys())]
    lines += [f"unexpected: {name} {saved[name]}" for name in sorted(saved.keys() - wanted.keys())]
    lines += [
        f"{name}: {saved[name]} in the file, {wanted[name]} in the model"
        for name in sorted(wanted.keys() & saved.keys())
        if wanted[name] != saved[name]
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise ValueError(
            f"{what} is of another model:\n  {listed}\nUse the model config it was trained with."
        )

"""The schema of a whole config. No JAX: configs and tools read it without an accelerator.

Each part is a frozen dataclass next to its owner; the parts whose owner is a single file are in
this one. Fields, types and defaults are listed once, in these classes; `configs/common.py` is made
from them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vivit.data.settings import AugmentSettings, DataSettings
from vivit.mesh import FSDP, TENSOR
from vivit.model.settings import RATES, ModelSettings
from vivit.pretrained.settings import InitSettings
from vivit.tasks.settings import TaskSettings

Rule = tuple[str, tuple[str | None, ...]]
RULES: tuple[Rule, ...] = (
    (r"(query|key|value)/kernel$", (FSDP, TENSOR, None)),
    (r"attention_\w+/out/kernel$", (TENSOR, None, FSDP)),
    (r"mlp/up/kernel$", (FSDP, TENSOR)),
    (r"mlp/down/kernel$", (TENSOR, FSDP)),
)


@dataclass(frozen=True)
class OptimSettings:
    """The schema of `config.optim`, for `vivit.optim.make_optimizer`.

    name: of OPTIMIZERS, with its options: "adamw(b2=0.98, weight_decay=0.1)".
    lr: the learning rate after warm-up.
    lr_batch_size: the batch size that `lr` is for: a run's rate is lr * data.batch_size /
        lr_batch_size (1706.02677, section 2.1), and a schedule's floor stays as it is; 0 for `lr`
        at any batch size.
    schedule: a name of SCHEDULES, with its options: "cosine(floor=1e-5)".
    warmup_steps: over which the learning rate grows linearly to `lr`.
    warmup_fraction: of the training steps, instead of warmup_steps, rounded down.
    clip_norm: global norm to which gradients are clipped, after the mean over all devices; 0 or
        None does not clip.
    layer_decay: the learning rate of each layer over that of the next one; the head has `lr`.
    freeze: regexes of paths, such as "stage_0/layer_[0-5]/": parameters in whose path one is found
        keep their values, have no optimiser state and do not count in the norm.
    """

    name: str = "adamw"
    lr: float = 1e-3
    lr_batch_size: int = 0
    schedule: str = "cosine"
    warmup_steps: int = 0
    warmup_fraction: float = 0.0
    clip_norm: float | None = 1.0
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"optim.lr={self.lr} is not a number of at least 0")
        if self.lr_batch_size < 0:
            raise ValueError(f"optim.lr_batch_size={self.lr_batch_size} is below 0")
        if self.clip_norm is not None and not 0 <= self.clip_norm < math.inf:
            raise ValueError(
                f"optim.clip_norm={self.clip_norm} is not a number of at least 0, or None"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay={self.layer_decay} is not in (0, 1]")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"optim.warmup_fraction={self.warmup_fraction} is not in [0, 1)")
        if self.warmup_fraction and self.warmup_steps:
            raise ValueError(
                f"optim.warmup_fraction={self.warmup_fraction} and "
                f"warmup_steps={self.warmup_steps} are both set; set one of them to 0"
            )


@dataclass(frozen=True)
class TrainSettings:
    """The schema of `config.train`.

    steps, log_every, eval_every, checkpoint_every: in training steps, each at least 1.
    epochs: over the split's clips, instead of `steps`, which is then 0.
    keep_checkpoints: the newest ones to keep; the one with the best validation score stays too.
    accumulate: parts of a batch that are computed one after another, with the result of the whole
        batch and the memory of one part.
    label_smoothing: share of the target that is spread over all classes; 1512.00567, section 7.
        Of a multi-label task, over whether a clip has a class or not.
    ramps: strength -> a name of RAMPS with its options, for strengths of regularisers that change
        over the training: {"drop_path": "falling(until=0.5)"}. drop_path, dropout and
        attention_dropout of the model, mixup, cutmix, erase, grey, colour_jitter and magnitude of
        `augment`, and label_smoothing; each is multiplied by its ramp. Also weight_decay of the
        optimiser, averaging, which is 1 - average_decay, and context of the task jepa.
    average_decay: of an exponential moving average of the parameters, which evaluation then uses;
        None for none.
    """

    steps: int = 500
    epochs: float = 0.0
    log_every: int = 20
    eval_every: int = 100
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    accumulate: int = 1
    label_smoothing: float = 0.0
    ramps: Mapping[str, str] = field(default_factory=dict)
    average_decay: float | None = None

    def __post_init__(self) -> None:
        every = ("log_every", "eval_every", "checkpoint_every")
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"train.epochs={self.epochs} is not a number of at least 0")
        if self.epochs and self.steps:
            raise ValueError(
                f"train.epochs={self.epochs} and steps={self.steps} are both set; set one of them "
                "to 0"
            )
        names = (*every, "keep_checkpoints", "accumulate", *(() if self.epochs else ("steps",)))
        problems = [f"train.{n}={getattr(self, n)}" for n in names if getattr(self, n) < 1]
        if problems:
            raise ValueError(f"{', '.join(problems)} must be at least 1")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing} is not in [0, 1]")
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(f"train.average_decay={self.average_decay} is not in [0, 1)")

    def with_steps(self, batch_size: int, *, clips: int = 10**6) -> "TrainSettings":
        """Returns settings whose `steps` are those of `epochs`, rounded, if these were given.

        clips: of the split; the default is for who needs some number of steps without opening it.
        """
        if not self.epochs:
            return self
        steps = max(1, round(self.epochs * clips / batch_size))
        return replace(self, steps=steps, epochs=0.0)


@dataclass(frozen=True)
class ParallelSettings:
    """The schema of `config.parallel`, for `vivit.parallel.make_parallel`.

    mode: a name of MODES: "jit" over a mesh, or "pmap".
    data, fsdp, tensor, sequence: devices along each axis of the mesh. data and fsdp split the
        clips, and fsdp the parameters too; tensor splits attention heads and MLPs; sequence splits
        the tokens of each clip, for kernels over devices ("ring", "ulysses"). data=-1 takes all
        devices that are left.
    rules: (regex of an array's path, mesh axes of the array's last dimensions); the first rule
        whose regex is found in the path counts, and arrays without one are replicated.
    """

    mode: str = "jit"
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: tuple[Rule, ...] = RULES


@dataclass(frozen=True)
class Config:
    """The schema of a run's config.

    seed: of initial parameters, the order of training clips, augmentation and dropout.
    imports: modules to import first; they may register patterns, sizes, data sets and so on.
    """

    seed: int = 0
    imports: tuple[str, ...] = ()
    model: ModelSettings = ModelSettings(clip=(16, 32, 32), classes=8)
    task: TaskSettings = field(default_factory=TaskSettings)
    init: InitSettings = field(default_factory=InitSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = field(default_factory=TrainSettings)
    parallel: ParallelSettings = ParallelSettings()

    def __post_init__(self) -> None:
        heads, label = self.task.heads, self.data.label
        if heads and label:
            raise ValueError(
                f"task.heads names labels, and so does data.label={label!r}; set data.label='', or "
                "task.heads={}"
            )
        if heads and self.model.classes != sum(heads.values()):
            raise ValueError(
                f"task.heads needs model.classes={sum(heads.values())}, the sum of its heads, not "
                f"{self.model.classes}"
            )

        strengths = {
            **{name: getattr(self.model, name) for name in RATES},
            **self.augment.strengths,
            "label_smoothing": self.train.label_smoothing,
            "averaging": self.train.average_decay is not None,
            "weight_decay": True,
            "context": True,
        }
        for name in self.train.ramps:
            if name not in strengths:
                known = ", ".join(sorted(strengths))
                raise ValueError(f"train.ramps: no strength {name!r}; known: {known}")
            if not strengths[name]:
                raise ValueError(f"train.ramps: {name} is 0 or changes nothing, so it has no ramp")

    @property
    def heads(self) -> dict[str, int]:
        """Label -> number of classes, in the order of the logits; {} for clips alone."""
        if self.data.label:
            return {self.data.label: self.model.classes}
        return dict(sorted(self.task.heads.items()))

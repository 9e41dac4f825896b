"""The options of `vivit.pretrained.load` and the schema of `config.init`. No JAX."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class LoadOptions:
    """How weights are read, and how what a file does not have is made.

    source: a name of SOURCES; "auto" for the one that recognises the file.
    source_clip: frames, height and width of the clips that the weights were trained with, where
        the weights do not show them; it must fit the weights.
    head: a name of HEADS: "auto" keeps a head of as many classes as the model's and replaces
        others by zeros, "keep", "replace"; or names of classes, or of a group of them such as
        "nouns", whose part of the head is kept.
    inflation: a name of INFLATIONS, from an image's patch kernel to a tubelet's.
    position_resize: a name of RESIZES, for position embeddings of another grid: each of time, rows
        and columns is resized.
    time_attention: a name of TIME_ATTENTIONS, for attention over time that the source does not
        have. "zero_out" copies the source's attention, with an output of zeros, so that the model
        starts as the source's of every frame (ViViT, 2103.15691, section 3.4); "copy" copies all
        of it, "scenic" all but the norm, "fresh" nothing.
    class_token: a name of CLASS_TOKENS: "keep" gives the source's class token to the first stage;
        "fresh" does not, as Scenic in its factorised encoder.
    checkpoint: of a run of vivit.train: "best", "latest" or a training step.
    """

    source: str = "auto"
    source_clip: tuple[int, int, int] | None = None
    head: str | tuple[str, ...] = "auto"
    inflation: str = "central_frame"
    position_resize: str = "linear"
    time_attention: str = "zero_out"
    class_token: str = "keep"
    checkpoint: str = "best"


@dataclass(frozen=True)
class InitSettings(LoadOptions):
    """The schema of `config.init`: the weights that a run starts from. Its options are those of
    LoadOptions.

    path: a file, a folder or a run; "" for none.
    model: "from_config", or "from_file": then `config.model` gets the architecture of the file, and
        keeps what a file does not decide: clip, classes, kernel, dtype, scan, remat and dropout.
    allow: fields of the model that may differ from what the weights were trained with.
    optimizer: whether to resume the optimiser of a run too. Its arrays must have the shapes of this
        config's; parameters and averaged ones are taken as they are, and the schedule and ramps
        start again.
    sha256: of every file that was read, as "NAME DIGEST"; filled in when a run starts.
    """

    path: str = ""
    model: str = "from_config"
    allow: tuple[str, ...] = ()
    optimizer: bool = False
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in ("from_config", "from_file"):
            raise ValueError(f"init.model={self.model!r} is neither from_config nor from_file")
        for given, name in ((self.model == "from_file", "model='from_file'"),
                            (self.optimizer, "optimizer=True")):  # fmt: skip
            if given and not self.path:
                raise ValueError(f"init.{name} needs init.path")
        adapting = [x for x in fields(LoadOptions) if x.name not in ("source", "checkpoint")]
        changed = [x.name for x in adapting if getattr(self, x.name) != x.default]
        if self.optimizer and changed:
            raise ValueError(
                "init.optimizer=True takes all parameters as they are, so "
                f"{', '.join(changed)} would do nothing; leave it out"
            )

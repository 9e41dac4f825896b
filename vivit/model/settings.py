"""What a config may say of a model: the schema of `config.model`, sizes and families. No JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vivit.records import record
from vivit.registry import OptionRegistry, Options, Registry, options_of


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    mlp_dim: int


# ViT (2010.11929), table 1; Ti and S: DeiT (2012.12877), table 1.
SIZES: Registry[Size] = Registry("size")
SIZES.add("Ti", Size(192, 12, 3, 768))
SIZES.add("S", Size(384, 12, 6, 1536))
SIZES.add("B", Size(768, 12, 12, 3072))
SIZES.add("L", Size(1024, 24, 16, 4096))
SIZES.add("H", Size(1280, 32, 16, 5120))


# Those of a model that train.ramps may change.
RATES = ("drop_path", "dropout", "attention_dropout")


@dataclass(frozen=True)
class StageSettings:
    """One stage of an encoder, as a config lists it.

    depth: layers.
    attentions: names of PATTERNS, one residual branch each in every block.
    pool: a name of READOUTS, over the axes that the stage mixes, or in the last stage over all that
        are left; "" for no pooling.
    reduce: a name of REDUCTIONS, such as "token_learner(8)"; "" for no reduction.
    block: a name of BLOCKS.
    norm: whether a layer norm follows the blocks; None for what the readout wants.
    heads, mlp_dim, rope, qkv_bias: the stage's values of the model's fields; None for the model's.
    """

    depth: int
    attentions: tuple[str, ...]
    pool: str
    reduce: str = ""
    block: str = "standard"
    norm: bool | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    rope: str | None = None
    qkv_bias: str | None = None


@dataclass(frozen=True)
class ModelSettings:
    """The schema of `config.model`, and what `vivit.build` takes.

    clip: frames, height and width of the clips.
    classes: of the head; 0 for no head: the model then gives its features.
    family: a name of FAMILIES, or of a pattern: every block then has that pattern. Both may have
        options: "factorised_encoder(temporal_depth=2)", "window(4, 7, 7)".
    stages: a list of mappings with the fields of StageSettings; they replace family and readout.
    size: a name of SIZES, with or without a tubelet: "B", or "B/16x2" (16 pixels, 2 frames).
        It gives width, depth, heads, mlp_dim and tubelet where they are None.
    width: channels of a token. depth: layers; of a factorised encoder those of the first stage.
    heads: of queries. mlp_dim: hidden channels of the MLPs. tubelet: its frames, height and width.
    embedding: a name of EMBEDDINGS. position: a name of POSITION_EMBEDDINGS; an axis gets its
        position embedding in the first stage that mixes it.
    readout: a name of READOUTS: "cls", "mean", "max", "vjepa2_pool", ...
    pre_logits: width of a dense layer with tanh before the head; None for no such layer.
    pixel_mean, pixel_std: of red, green and blue; uint8 clips become (x / 255 - mean) / std.
    kernel: a name of KERNELS. dtype: of the computation; parameters and the head are float32.
    kv_heads: heads of keys and values, a divisor of `heads`; 2305.13245. None for as many.
    qkv_bias: which of the projections to q, k and v have a bias, by their letters.
    qk_norm: layer norm of queries and keys; 2302.05442.
    rope: a name of ROTATIONS: "3d" rotates queries and keys by their coordinates, in addition to
        position embeddings or, with position="none", instead of them; 2506.09985.
    registers: additional tokens of every stage that nothing reads; 2309.16588.
    soft_cap: scores s become cap·tanh(s / cap); 2408.00118. None for no cap.
    activation: of the MLPs: "gelu_tanh" (ViViT's), "gelu" (exact, TimeSformer's), ...; "swiglu"
        multiplies the two halves of mlp_dim (2002.05202).
    pre_norm: whether a layer norm comes before the first block, as in CLIP (2103.00020).
    norm_epsilon: of all layer norms but that of the readout mean_then_norm.
    drop_path: the last layer's rate; it grows linearly from 0 over all layers.
    dropout: of tokens and in the MLPs. attention_dropout: of attention weights.
    scan: one compiled block for all layers of a stage. remat: a name of REMAT: "full", "dots"
        (keeps matrix products), "attention" (keeps what chunked attention needs).
    """

    clip: tuple[int, int, int]
    classes: int
    family: str = "factorised_encoder"
    stages: tuple[StageSettings, ...] = ()
    size: str = ""
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    tubelet: tuple[int, int, int] | None = None
    embedding: str = "tubelet"
    position: str = "learned"
    readout: str = "mean"
    pre_logits: int | None = None
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    kernel: str = "dense"
    kv_heads: int | None = None
    qkv_bias: str = "qkv"
    qk_norm: bool = False
    rope: str = "none"
    registers: int = 0
    soft_cap: float | None = None
    activation: str = "gelu_tanh"
    pre_norm: bool = False
    norm_epsilon: float = 1e-6
    drop_path: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"


@dataclass(frozen=True)
class Family:
    """A registered family: `make(depth=, readout=, **options)` lists the stages of a model, each a
    mapping with fields of StageSettings."""

    name: str
    make: Callable[..., tuple[Mapping[str, Any], ...]]
    options: Options = field(default_factory=Options)

    def stages(self, *, depth: int, readout: str) -> tuple[StageSettings, ...]:
        """Returns the stages. Raises ValueError for unknown or missing fields of one."""
        made = self.make(depth=depth, readout=readout, **self.options)
        return tuple(record(StageSettings, dict(s), at=f"a stage of {self.name}") for s in made)


FAMILIES: OptionRegistry[Family] = OptionRegistry("family")


def family(name: str):
    """Returns a decorator that registers a function as a family.

    The function takes depth and readout by keyword; its other keyword-only arguments are the
    family's options, each with a default.
    """

    def register(make):
        FAMILIES.add(name, Family(name, make, options_of(make, given=("depth", "readout"))))
        return make

    return register


def one_stage(*attentions: str, block: str = "standard"):
    """Returns the function of a family of one stage with these attentions in each block."""

    def stages(*, depth: int, readout: str) -> tuple[Mapping[str, Any], ...]:
        return ({"depth": depth, "attentions": attentions, "pool": readout, "block": block},)

    return stages


# The first five families are those of ViViT (2103.15691), sections 3.3 and 4.2.
family("joint")(one_stage("joint"))  # model 1


@family("factorised_encoder")
def factorised_encoder(*, depth: int, readout: str, temporal_depth: int = 4):
    """Space within each time step, then time, in an encoder of its own: model 2."""
    return (
        {"depth": depth, "attentions": ("space",), "pool": readout},
        {"depth": temporal_depth, "attentions": ("time",), "pool": readout},
    )


family("factorised_self_attention")(one_stage("space", "time"))  # model 3
# The order of Scenic's published config; the paper found no difference (section 3.3).
family("factorised_self_attention_time_space")(one_stage("time", "space"))
family("factorised_dot_product")(one_stage("split_heads"))  # model 4


@family("average_pool")
@family("space_only")  # TimeSformer's (2102.05095), figure 2
def average_pool(*, depth: int, readout: str):
    """The baseline of ViViT's table 2: each time step on its own, then their mean."""
    return (
        {"depth": depth, "attentions": ("space",), "pool": readout},
        {"depth": 0, "attentions": (), "pool": "mean"},
    )


# TimeSformer (2102.05095), section 3 and figure 2.
family("divided")(one_stage("time", "space", block="divided"))
family("divided_time")(one_stage("time", block="divided"))  # the first half of it
family("local_global")(one_stage("local", "strided_global"))
family("axial")(one_stage("time", "height", "width"))

"""The models, weights, batches and runs of make_v010.py, in the names of version 0.1.0."""

MODEL = {
    "clip": (4, 16, 16),
    "tubelet": (2, 4, 4),
    "classes": 5,
    "width": 24,
    "depth": 2,
    "temporal_depth": 1,
    "heads": 4,
    "mlp_dim": 32,
}
LONG = {"clip": (6, 8, 16)}  # a grid of 3 x 2 x 4


def reduced(reduction, pool="mean"):
    first = {"depth": 1, "mixers": ("space", "time"), "pool": ""}
    return {
        "stages": (first, {"depth": 2, "mixers": ("joint",), "pool": pool, "reduce": reduction})
    }


def model_cases():
    """Name -> the model's fields that differ from MODEL, and how it is run."""
    cases = {f"family {name}": {"family": name} for name in (
        "joint", "factorised_encoder", "factorised_self_attention",
        "factorised_self_attention_time_space", "factorised_dot_product", "average_pool",
        "space_only", "divided", "local_global", "axial",
    )}  # fmt: skip
    for name in (
        "space", "time", "divided_time", "split_heads", "height", "width", "causal_time",
        "dilated_time", "dilated_time(1)", "strided_time", "strided_time(3)", "trajectory",
        "window(1, 2, 2)", "window(2, 2, 3)", "window(3, 1, 4)", "neighbourhood(1, 3, 1)",
        "neighbourhood(3, 2, 3)", "neighbourhood(2, 1, 3)", "local", "strided_global",
    ):  # fmt: skip
        clip = {"clip": (6, 12, 16)} if name.startswith(("window", "neigh")) else LONG
        cases[f"pattern {name}"] = {"family": name, **clip}
    for family in ("joint", "factorised_encoder", "divided", "average_pool"):
        cases[f"readout cls {family}"] = {"family": family, "readout": "cls"}
        cases[f"registers {family}"] = {"family": family, "registers": 2, "readout": "max"}
        cases[f"cls and registers {family}"] = {"family": family, "readout": "cls", "registers": 3}
    for name in (
        "first", "mean", "max", "sum", "mean_then_norm", "attentive", "attention", "map",
    ):  # fmt: skip
        cases[f"readout {name}"] = {"family": "joint", "readout": name}
        cases[f"readout {name} in two stages"] = {"readout": name}
    for name in (
        "learned_separable", "learned_space_time", "sinusoidal", "sinusoidal_interleaved",
        "sinusoidal_separable", "none",
    ):  # fmt: skip
        cases[f"position {name}"] = {"family": "joint", "position": name, "readout": "cls"}
        cases[f"position {name} in two stages"] = {"position": name}
    cases["embedding uniform_frames"] = {"embedding": "uniform_frames"}
    for rope in ("3d", "3d_vjepa2"):
        cases[f"rope {rope}"] = {"family": "joint", "rope": rope, "position": "none"}
        cases[f"rope {rope} and cls"] = {
            "rope": rope, "readout": "cls", "registers": 1, "width": 32,
        }  # fmt: skip
        cases[f"rope {rope} divided"] = {"family": "divided", "rope": rope, "readout": "cls"}
    for kernel in ("chunked", "chunked(5)", "auto"):
        for family in ("joint", "window(2, 2, 2)", "split_heads", "trajectory", "causal_time"):
            cases[f"kernel {kernel} {family}"] = {"kernel": kernel, "family": family}
        cases[f"kernel {kernel} with all"] = {
            "kernel": kernel, "family": "neighbourhood(2, 3, 3)", "kv_heads": 2, "soft_cap": 2.0,
            "attention_dropout": 0.3,
        }  # fmt: skip
    for pool in ("mean", "cls", "max", "attentive"):
        for reduction in ("token_learner(3)", "random_dropping(3)", "token_merging(3)"):
            cases[f"reduction {reduction} {pool}"] = reduced(reduction, pool)
    cases["reduction token_learner(2) in the first of two stages"] = {"stages": (
        {"depth": 1, "mixers": ("space",), "pool": "", "reduce": "token_learner(2)"},
        {"depth": 1, "mixers": ("time",), "pool": "mean"},
    )}  # fmt: skip
    cases["reduction random_dropping(2) in the first of two stages"] = {"stages": (
        {"depth": 1, "mixers": ("space",), "pool": "", "reduce": "random_dropping(2)"},
        {"depth": 1, "mixers": ("joint",), "pool": "cls"},
    )}  # fmt: skip
    cases["reduction in a divided stage"] = {"stages": (
        {
            "depth": 2, "mixers": ("divided_time", "space"), "pool": "cls",
            "reduce": "token_learner(3)",
        },
    )}  # fmt: skip
    cases["reduction token_merging(2) and registers"] = {
        "registers": 2,
        "stages": (
            {"depth": 3, "mixers": ("space",), "pool": "mean", "reduce": "token_merging(2)"},
            {"depth": 1, "mixers": ("time",), "pool": "mean"},
        ),
    }
    cases["stages with fields"] = {"stages": (
        {
            "depth": 1, "mixers": ("space",), "pool": "mean", "heads": 2, "mlp_dim": 16,
            "rope": "3d", "norm": False,
        },
        {"depth": 2, "mixers": ("time",), "pool": "cls", "qkv_bias": "v", "norm": True},
    )}  # fmt: skip
    cases["stages divided by name"] = {"stages": (
        {"depth": 1, "mixers": ("divided_time", "space"), "pool": ""},
        {"depth": 1, "mixers": ("space", "divided_time"), "pool": "mean"},
    )}  # fmt: skip
    cases["stages first, then attention over both"] = {"stages": (
        {"depth": 1, "mixers": ("height", "width"), "pool": ""},
        {"depth": 2, "mixers": ("joint", "time"), "pool": "attention"},
    )}  # fmt: skip
    for name, fields in {
        "qk_norm": {"qk_norm": True, "readout": "cls"},
        "kv_heads 2": {"kv_heads": 2},
        "kv_heads 1": {"kv_heads": 1, "family": "divided"},
        "soft_cap": {"soft_cap": 2.0},
        "qkv_bias qv": {"qkv_bias": "qv", "readout": "map"},
        "qkv_bias none": {"qkv_bias": "", "readout": "attentive"},
        "norm_epsilon": {"norm_epsilon": 1e-2, "readout": "mean_then_norm"},
        "pre_logits": {"pre_logits": 12},
        "no head": {"classes": 0},
        "heads 2": {"heads": 2, "temporal_depth": 2},
        "bfloat16": {"dtype": "bfloat16"},
        "bfloat16 chunked divided": {"dtype": "bfloat16", "kernel": "chunked", "family": "divided"},
        **{f"activation {a}": {"activation": a} for a in ("gelu", "quick_gelu", "relu", "silu")},
    }.items():
        cases[name] = fields
    for remat in ("none", "full", "dots", "attention"):
        for scan in (False, True):
            cases[f"remat {remat} scan {scan}"] = {
                "family": "window(2, 2, 2)", "remat": remat, "scan": scan, "kernel": "chunked",
            }  # fmt: skip
    cases["scan divided cls"] = {"family": "divided", "scan": True, "readout": "cls"}
    cases = {name: {"model": fields} for name, fields in cases.items()}
    noise = {"dropout": 0.2, "drop_path": 0.3, "attention_dropout": 0.2}
    for name, fields in {
        "training": {},
        "training divided": {"family": "divided", "readout": "cls", "kernel": "chunked(5)"},
        "training split heads": {"family": "split_heads"},
        "training scanned": {"scan": True, "remat": "full", "depth": 3},
        "training random_dropping": reduced("random_dropping(3)"),
        "training token_merging": reduced("token_merging(2)", "cls"),
        "training trajectory": {"family": "trajectory"},
    }.items():
        cases[name] = {"model": {**fields, **noise}, "train": True}
    cases["pixels"] = {
        "model": {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)},
        "uint8": True,
    }
    cases["pixels as they are"] = {"model": {}, "uint8": True}
    return {name: {**c, "model": {**MODEL, **c["model"]}} for name, c in cases.items()}


SOURCES = {
    **{name: {} for name in (
        "hf_timesformer_divided", "hf_timesformer_joint", "hf_timesformer_space", "hf_videomae",
        "hf_videomae_first", "hf_videomae_pretraining", "hf_videoprism", "hf_videoprism_encoder",
        "hf_videoprism_video", "hf_vivit", "hf_vivit_bare", "hf_vivit_no_bias", "hf_vjepa2",
        "hf_vjepa2_encoder",
    )},
    "scenic_spacetime_token": {"source_clip": (8, 16, 16)},
    "scenic_spacetime_gap": {"source_clip": (8, 16, 16)},
    "scenic_factorized_encoder_token": {"source_clip": (8, 16, 16)},
    "scenic_factorized_encoder_gap": {"source_clip": (8, 16, 16)},
    "scenic_factorized_self_attention_time_space": {"source_clip": (8, 16, 16)},
    "scenic_factorized_dot_product": {
        "source_clip": (8, 16, 16), "family": "factorised_dot_product",
    },
}  # fmt: skip
IMAGES = ("import_token_fe_tile", "import_gap_fsa_tile")  # of Scenic's golden files
ADAPTED = {
    "linear": {"clip": (8, 24, 24)},
    "cubic": {"clip": (8, 24, 24), "positions": "cubic"},
    "zoom": {"clip": (8, 24, 24), "positions": "zoom"},
    "square_zoom": {"clip": (8, 24, 24), "positions": "square_zoom"},
    "tile": {"clip": (16, 16, 16), "positions": "tile"},
    "average": {"clip": (8, 16, 16), "inflation": "average_frames"},
    "rank": {"clip": (8, 16, 16), "inflation": "rank_pooling"},
    "fresh": {"clip": (8, 16, 16), "inflation": "fresh", "seed": 2},
    "encoder": {
        "clip": (8, 16, 16), "family": "factorised_encoder", "class_token": "fresh",
        "model": {"temporal_depth": 3},
    },
    "copied time": {
        "clip": (8, 16, 16), "family": "factorised_self_attention", "time_attention": "copy",
        "model": {"readout": "mean"},
    },
    "scenic time": {
        "clip": (8, 16, 16), "family": "factorised_self_attention", "time_attention": "scenic",
        "model": {"readout": "mean"},
    },
    "zero time": {
        "clip": (8, 16, 16), "family": "divided", "model": {"readout": "mean", "scan": True},
    },
    "fresh time": {
        "clip": (8, 16, 16), "family": "divided", "time_attention": "fresh",
        "model": {"readout": "map"},
    },
    "new head": {"clip": (8, 16, 16), "head": "replace", "classes": 4},
}  # fmt: skip


def source_cases():
    """Name -> the file and the options of `pretrained.load`, in the names of 0.1.0."""
    cases = {name: {"file": name, "form": "", "options": o} for name, o in SOURCES.items()}
    for image in IMAGES:
        for form in ("scenic", "vision_transformer", "big_vision"):
            at = f"scenic_{image}"
            cases[f"{image} {form}"] = {"file": at, "form": form, "options": {}}
        for name, options in ADAPTED.items():
            cases[f"{image} {name}"] = {
                "file": f"scenic_{image}", "form": "scenic", "options": options,
            }  # fmt: skip
    return cases


STRONG = {
    "flip": 0.5, "brightness": 0.4, "contrast": 0.3, "saturation": 0.3, "hue": 0.1,
    "colour_share": 0.8, "grey": 0.2, "operations": 2, "erase": 0.4, "mixup": 0.8, "cutmix": 1.0,
}  # fmt: skip
SMALL = {"clip": (8, 24, 24), "augment": {"short_side": (26, 40), **STRONG}}
BATCHES = {
    "digits": {"data": {"name": "moving_digits", "label": "motion"}, "clip": (16, 32, 32)},
    "digits strong": {
        "data": {
            "name": "moving_digits", "label": "motion", "sampling": {"stride_frames": 2},
            "views": {"temporal": 3, "spatial": 3, "short_side": 28},
        },
        **SMALL,
    },
    "digits segments": {
        "data": {
            "name": "moving_digits", "label": "digit", "sampling": {"kind": "segments"},
            "views": {"temporal": 2, "average": "probabilities"},
        },
        "clip": (5, 16, 16), "augment": {"mixup": 0.4, "crop": "centre"},
    },
    "h264": {
        "data": {
            "name": "films_h264", "label": "label", "sampling": {"stride_frames": 2},
            "canvas": (48, 64), "views": {"temporal": 2, "spatial": 3, "short_side": 40},
        },
        "clip": (4, 32, 32), "augment": {**STRONG, "short_side": (32, 48), "mixup": 0.0},
    },
    "jpeg": {
        "data": {
            "name": "films_jpeg", "label": "label",
            "sampling": {"short": "repeat", "stride_frames": 3},
        },
        "clip": (6, 48, 48), "augment": {"flip": 0.5, "cutmix": 1.0},
    },
    "raw": {
        "data": {"name": "films_raw", "label": "label", "sampling": {"kind": "segments"}},
        "clip": (4, 32, 32), "augment": {"operations": 3, "magnitude": 7.0},
    },
    "files": {
        "data": {
            "name": "films/films.csv", "root": "films", "label": "label", "short_side": 40,
            "sampling": {"stride_seconds": 0.12},
        },
        "clip": (6, 32, 32), "augment": {"grey": 1.0},
    },
}  # fmt: skip


def batch_cases():
    at = lambda case: {"root": "data", "batch_size": 4, **case["data"]}
    return {name: {"augment": {}, **case, "data": at(case)} for name, case in BATCHES.items()}


TINY = {
    "model.clip": "(4,16,16)", "model.tubelet": "(2,8,8)", "model.width": 16, "model.depth": 1,
    "model.heads": 2, "model.mlp_dim": 16, "model.temporal_depth": 1, "data.batch_size": 8,
    "optim.lr": 0.003, "optim.warmup_steps": 5, "train.log_every": 1, "train.steps": 50,
    "train.eval_every": 25, "train.checkpoint_every": 50,
}  # fmt: skip
MIXED = {"augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.flip": 0.5, "augment.erase": 0.25}
NOISE = {"model.dropout": 0.1, "model.drop_path": 0.2, "model.attention_dropout": 0.1}
LOSSES = {
    "adamw": {},
    "adamw pmap": {"parallel.mode": "pmap"},
    "sgd averaged": {"optim.name": "sgd", "optim.lr": 0.1, "train.average_decay": 0.9},
    "sgd pmap": {"optim.name": "sgd", "optim.lr": 0.1, "parallel.mode": "pmap"},
    "mixed": MIXED,
    "noise": {**NOISE, "train.label_smoothing": 0.1},
    "all": {**MIXED, **NOISE, "train.average_decay": 0.98, "model.kernel": "chunked"},
    "all pmap": {**MIXED, **NOISE, "parallel.mode": "pmap"},
    "frozen": {
        "optim.freeze": "('tubelet','stage_0/position')", "optim.layer_decay": 0.7,
        "model.scan": True, "optim.clip_norm": 0.1, "optim.lr_floor": 0.001,
    },
    "fsdp": {"parallel.fsdp": 2, "devices": 2},
    "pmap of 2": {"parallel.mode": "pmap", "devices": 2, **MIXED, **NOISE},
    "ring": {
        "parallel.sequence": 2, "model.kernel": "ring", "model.family": "joint", "devices": 2,
    },
    "ulysses": {
        "parallel.sequence": 2, "model.kernel": "ulysses(3)", "model.family": "divided",
        "devices": 2,
    },
}  # fmt: skip


def loss_cases():
    return {name: {"devices": 1, **TINY, **case} for name, case in LOSSES.items()}


RUN = {**TINY, "train.steps": 6, "train.eval_every": 3, "train.checkpoint_every": 3,
       "train.average_decay": 0.9, "augment.mixup": 0.5}  # fmt: skip
# Every name of a model that has changed since.
STAGES = """
from configs import common


def get_config():
    config = common.get_config()
    config.model.update(clip=(4, 16, 16), width=16, heads=2, mlp_dim=16, depth=1, readout="map")
    config.model.tubelet = (2, 4, 4)
    config.model.stages = (
        {"depth": 1, "mixers": ("divided_time", "space"), "pool": "", "rope": "3d"},
        {"depth": 1, "mixers": ("joint",), "pool": "attentive", "reduce": "token_learner(4)"},
    )
    config.data.update(batch_size=4, bad_share=0.2)
    config.data.sampling.short = "repeat"
    config.data.views.update(temporal=2, average="probabilities")
    config.optim.update(name="sgd", lr=0.05, momentum=0.8)
    config.augment.update(colour_share=0.5, brightness=0.2)
    config.train.update(steps=4, log_every=1, eval_every=2, checkpoint_every=2)
    return config
"""

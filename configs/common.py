"""The base of every config: all keys, locked. An experiment's file changes what differs."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """A small factorised encoder; the keys are the arguments of the functions named beside them."""
    config = ConfigDict()
    config.seed = 0
    config.imports = ()  # modules imported first: they may register patterns, sizes, data sets

    config.model = {  # vivit.model.ViViT
        "clip": (16, 32, 32),
        "classes": 8,
        "family": "factorised_encoder",
        "stages": (),
        "size": "",
        "width": placeholder(int),
        "depth": placeholder(int),
        "heads": placeholder(int),
        "mlp_dim": placeholder(int),
        "temporal_depth": 4,
        "tubelet": placeholder(tuple),
        "embedding": "tubelet",
        "position": "learned",
        "readout": "mean",
        "pre_logits": placeholder(int),
        "pixel_mean": (0.5, 0.5, 0.5),  # of red, green, blue: uint8 becomes (x / 255 - mean) / std
        "pixel_std": (0.5, 0.5, 0.5),
        "kernel": "dense",
        "kv_heads": placeholder(int),
        "qkv_bias": "qkv",
        "qk_norm": False,
        "rope": "none",
        "registers": 0,
        "soft_cap": placeholder(float),
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-6,
        "drop_path": 0.0,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "scan": False,
        "remat": "none",
    }
    config.init = {  # vivit.pretrained.load: the weights that a run starts from
        "path": "",  # a file, a folder or a run; "" for none
        "source": "auto",
        "source_clip": placeholder(tuple),
        "head": "auto",
        "inflation": "central_frame",
        "positions": "linear",
        "time_attention": "zero_out",
        "class_token": "keep",
        "checkpoint": "best",
        "allow": (),  # model fields that may differ from what the weights were trained with
        "sha256": (),  # of the files; filled in when a run starts
    }
    config.data = {  # vivit.data.pipeline.Data
        "name": "moving_digits",  # of a prepared data set, or a manifest
        "root": "data",
        "label": "motion",
        "splits": ("train", "validation"),
        "batch_size": 64,
        "threads": 2,
        "workers": 0,
        "short_side": 256,  # pixels, of frames of files that were not prepared
        "canvas": placeholder(tuple),
        "enlarge": False,
        "sampling": {  # vivit.data.sampling.Sampling
            "kind": "clip",
            "stride_frames": 1,
            "stride_seconds": placeholder(float),
            "short": "wrap",
        },
        "views": {  # vivit.data.views.Views
            "temporal": 1,
            "spatial": 1,
            "short_side": placeholder(int),
            "average": "logits",
        },
        "bad_share": 0.05,
        "timeout_seconds": 60.0,
        "largest_frame": 4096 * 4096,  # pixels
    }
    config.augment = {  # vivit.data.augment.Augment
        "short_side": placeholder(tuple),
        "crop": "random",
        "flip": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "colour_share": 1.0,
        "grey": 0.0,
        "operations": 0,
        "magnitude": 9.0,
        "erase": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
    }
    config.optim = {  # vivit.optim.make_optimizer
        "name": "adamw",
        "lr": 1e-3,
        "lr_floor": 0.0,
        "warmup_steps": 0,
        "clip_norm": 1.0,  # 0 does not clip
        "b1": 0.9,
        "b2": 0.999,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "layer_decay": 1.0,  # of the learning rate, from each layer to the one before it
        "freeze": (),  # regexes of the paths of parameters that stay as they are
    }
    config.train = {  # vivit.train
        "steps": 500,
        "log_every": 20,
        "eval_every": 100,
        "checkpoint_every": 100,
        "keep_checkpoints": 2,
        "label_smoothing": 0.0,
        "average_decay": placeholder(float),  # of a moving average of the parameters
    }
    config.parallel = {  # vivit.parallel.make_parallel
        "mode": "jit",
        "data": -1,
        "fsdp": 1,
        "sequence": 1,  # devices that share a clip's tokens, with model.kernel="ring" or "ulysses"
        "rules": (
            # (regex of an array's path, mesh axes of its last dimensions); the first match counts.
            (r"(query|key|value)/kernel$", ("fsdp", None, None)),
            (r"attention_\w+/out/kernel$", (None, None, "fsdp")),
            (r"mlp/\w+/kernel$", ("fsdp", None)),
        ),
    }
    return config.lock()

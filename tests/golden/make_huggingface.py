"""Writes hf_*/: tiny HuggingFace models with random weights, as save_pretrained writes them, and
what they give. Needs torch and transformers, which the project does not:

    python tests/golden/make_huggingface.py [NAME ...]
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)
from transformers.models.videoprism import VideoPrismVisionConfig
from transformers.models.videoprism.modeling_videoprism import (
    VideoPrismForVideoClassification,
    VideoPrismVideoModel,
    VideoPrismVisionModel,
)

FOLDER = Path(__file__).parent
SMALL = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "num_labels": 5,
    "attn_implementation": "eager",
}
VIDEO = {"image_size": 16, "num_frames": 4}
PRISM = {**SMALL, "image_size": 12, "num_frames": 3, "tubelet_size": [1, 6, 6],
         "num_spatial_layers": 2, "num_temporal_layers": 1}  # fmt: skip
JEPA = {**SMALL, "crop_size": 16, "frames_per_clip": 4, "patch_size": 8, "mlp_ratio": 2.5,
        "hidden_size": 32, "num_pooler_layers": 2, "pred_hidden_size": 12,
        "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}  # fmt: skip
IMAGE = {"image_size": 24, "patch_size": 8}
DINO = {**{k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_labels")},
        **IMAGE, "mlp_ratio": 2}  # fmt: skip
CASES = {
    "vit": (ViTForImageClassification, ViTConfig, {**SMALL, **IMAGE}),
    "vit_bare": (ViTModel, ViTConfig, {**SMALL, **IMAGE, "qkv_bias": False}),
    "deit": (DeiTForImageClassification, DeiTConfig, {**SMALL, **IMAGE}),
    "dinov2": (Dinov2Model, Dinov2Config, DINO),
    "dinov2_gated": (Dinov2Model, Dinov2Config, {**DINO, "use_swiglu_ffn": True}),
    "dinov2_registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig,
        {**DINO, "num_register_tokens": 3},
    ),
    "clip": (CLIPVisionModel, CLIPVisionConfig, {**SMALL, **IMAGE}),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, {**SMALL, **IMAGE}),
    "vivit": (
        VivitForVideoClassification,
        VivitConfig,
        {**SMALL, **VIDEO, "tubelet_size": [2, 8, 8]},
    ),
    "vivit_no_bias": (
        VivitForVideoClassification,
        VivitConfig,
        {**SMALL, **VIDEO, "tubelet_size": [2, 8, 8], "qkv_bias": False, "hidden_act": "gelu"},
    ),
    "vivit_bare": (
        VivitModel,
        VivitConfig,
        {**SMALL, **VIDEO, "tubelet_size": [2, 4, 8], "pooler_output_size": 12},
    ),
    "timesformer_divided": (
        TimesformerForVideoClassification,
        TimesformerConfig,
        {**SMALL, **VIDEO, "patch_size": 8},
    ),
    "timesformer_joint": (
        TimesformerForVideoClassification,
        TimesformerConfig,
        {**SMALL, **VIDEO, "patch_size": 8, "attention_type": "joint_space_time"},
    ),
    "timesformer_space": (
        TimesformerForVideoClassification,
        TimesformerConfig,
        {**SMALL, **VIDEO, "patch_size": 8, "attention_type": "space_only", "qkv_bias": False},
    ),
    "videomae": (
        VideoMAEForVideoClassification,
        VideoMAEConfig,
        {**SMALL, **VIDEO, "patch_size": 8},
    ),
    "videomae_first": (
        VideoMAEForVideoClassification,
        VideoMAEConfig,
        {**SMALL, **VIDEO, "patch_size": 8, "use_mean_pooling": False, "qv_bias": False},
    ),
    "videomae_pretraining": (
        VideoMAEForPreTraining,
        VideoMAEConfig,
        {
            **SMALL,
            **VIDEO,
            "patch_size": 8,
            "use_mean_pooling": False,
            "decoder_hidden_size": 12,
            "decoder_num_attention_heads": 2,
            "decoder_num_hidden_layers": 1,
            "decoder_intermediate_size": 16,
        },
    ),
    "vjepa2": (VJEPA2ForVideoClassification, VJEPA2Config, JEPA),
    "vjepa2_encoder": (VJEPA2Model, VJEPA2Config, {**JEPA, "qkv_bias": False}),
    "vjepa2_pretraining": (
        VJEPA2Model,
        VJEPA2Config,
        {**JEPA, "pred_num_mask_tokens": 3, "pred_num_hidden_layers": 2},
    ),
    "videoprism": (VideoPrismForVideoClassification, VideoPrismVisionConfig, PRISM),
    "videoprism_encoder": (VideoPrismVisionModel, VideoPrismVisionConfig, PRISM),
    "videoprism_video": (
        VideoPrismVideoModel,
        VideoPrismVisionConfig,
        {**PRISM, "num_auxiliary_layers": 1, "apply_l2norm": False, "attn_logit_softcapping": 2.0},
    ),
}


def make(name: str) -> None:
    cls, config_cls, fields = CASES[name]
    fields = {
        k: v for k, v in fields.items() if not (k == "num_labels" and "Vision" in cls.__name__)
    }
    image = "num_frames" not in fields and "frames_per_clip" not in fields
    torch.manual_seed(len(name))
    config = config_cls(**{k: v for k, v in fields.items() if k != "attn_implementation"})
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():  # what starts as zeros or ones would hide a mistake
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    frames = fields.get("num_frames", fields.get("frames_per_clip", 1))
    side = fields.get("image_size", fields.get("crop_size"))
    clips = torch.randn(2, frames, 3, side, side)
    options = {"output_hidden_states": True, "output_attentions": True}
    if cls is VideoMAEForPreTraining:
        run = model.videomae
    elif cls is VJEPA2Model:
        options["skip_predictor"] = True
        run = model
    else:
        run = model
    with torch.no_grad():
        out = run(clips[:, 0] if image else clips, **options)
    folder = FOLDER / f"hf_{name}"
    model.save_pretrained(folder)
    arrays = {"input": clips.permute(0, 1, 3, 4, 2).numpy()}
    for key in ("logits", "last_hidden_state", "pooler_output"):
        if getattr(out, key, None) is not None:
            arrays[key] = getattr(out, key).numpy()
    for key in ("hidden_states", "attentions"):
        for i, value in enumerate(getattr(out, key, None) or ()):
            arrays[f"{key}/{i:02d}"] = value.numpy()
    np.savez_compressed(folder / "outputs.npz", **arrays)
    print(name, transformers.__version__, {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)

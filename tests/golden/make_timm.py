"""Writes timm_*/: tiny image ViTs of timm with random weights, and what they give. Needs torch and
timm, which the project does not:

    python tests/golden/make_timm.py
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

FOLDER = Path(__file__).parent
SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1,
         "mlp_ratio": 1, "num_classes": 5}  # fmt: skip
PUBLISHED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CASES = {
    "token": {},
    "registers": {"init_values": 0.1, "reg_tokens": 2, "no_embed_class": True},
    "mean": {"class_token": False, "global_pool": "avg", "pre_norm": True},
    # As timm has DINOv2's giant; registers have positions here.
    "gated": {
        "mlp_layer": SwiGLUPacked,
        "act_layer": torch.nn.SiLU,
        "mlp_ratio": 2,
        "num_classes": 0,
        "reg_tokens": 1,
    },
}


def make(name: str) -> None:
    torch.manual_seed(len(name))
    model = VisionTransformer(**{**SMALL, **CASES[name]}).eval()
    with torch.no_grad():  # what starts as zeros or ones would hide a mistake
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.2).half())
    images, states = torch.randn(2, 3, 24, 24), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, out: states.append(out.detach().numpy()))
    with torch.no_grad():
        logits = model(images)
    folder = FOLDER / f"timm_{name}"
    folder.mkdir(exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({"architecture": "vit", "pretrained_cfg": PUBLISHED}) + "\n"
    )
    arrays = {f"hidden_states/{i:02d}": state for i, state in enumerate(states)}
    inputs = images.permute(0, 2, 3, 1)[:, None].numpy()
    np.savez_compressed(folder / "outputs.npz", input=inputs, logits=logits.numpy(), **arrays)
    print(name, timm.__version__, logits.shape)


if __name__ == "__main__":
    for case in CASES:
        make(case)

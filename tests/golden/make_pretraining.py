"""Makes pretraining.npz of hf_videomae_pretraining: what transformers' pre-training model of these
weights says of given clips and masks.

In an environment with torch and transformers: python tests/golden/make_pretraining.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import VideoMAEForPreTraining

FOLDER = Path(__file__).parent
MEAN, STD = (torch.tensor(x) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def main() -> None:
    rng = np.random.default_rng(0)
    folder = FOLDER / "hf_videomae_pretraining"
    arrays = {}
    for name, normalise in (("normalised", True), ("raw", False)):
        model = VideoMAEForPreTraining.from_pretrained(folder, norm_pix_loss=normalise)
        config = model.config
        steps, side = config.num_frames // config.tubelet_size, config.image_size
        space = (side // config.patch_size) ** 2
        if not arrays:
            shape = (2, config.num_frames, side, side, 3)
            arrays["input"] = rng.integers(0, 256, shape).astype(np.uint8)
            order = np.argsort(rng.random((2, space)), axis=1)
            hidden = np.zeros((2, space), bool)
            np.put_along_axis(hidden, order[:, : space // 2], True, axis=1)
            arrays["hidden"] = np.tile(hidden[:, None], (1, steps, 1)).reshape(2, -1)
        pixels = (torch.tensor(arrays["input"]) / 255 - MEAN) / STD
        out = model(pixels.permute(0, 1, 4, 2, 3), torch.tensor(arrays["hidden"]))
        out.loss.backward()
        arrays[f"{name}/loss"] = out.loss.detach().numpy()
        arrays[f"{name}/logits"] = out.logits.detach().numpy()
        for key, value in model.named_parameters():
            assert value.grad is not None, key
            arrays[f"{name}/grads/{key}"] = value.grad.numpy()
    np.savez_compressed(folder / "pretraining.npz", **arrays)
    print(transformers.__version__, {k: v for k, v in arrays.items() if k.endswith("loss")})


if __name__ == "__main__":
    main()

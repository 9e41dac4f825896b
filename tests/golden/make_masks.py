"""Masks that V-JEPA's released code draws: `python tests/golden/make_masks.py FILE`.

FILE: src/masks/multiblock3d.py of facebookresearch/jepa (read at 0733c95). Needs torch; run with
2.13.0. Writes vjepa_masks.npz: of each generator and batch the aspect ratio, each clip's corners,
and the tokens that are seen and predicted.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

CLIPS, BATCHES, GRID = 6, 4, (2, 12, 16)  # clips of a batch; time steps, rows, columns
GENERATORS = {"short": (8, 0.15), "long": (2, 0.7)}  # blocks, and the part that each covers
ASPECT = (0.75, 1.5)

spec = importlib.util.spec_from_file_location("multiblock3d", sys.argv[1])
released = importlib.util.module_from_spec(spec)
spec.loader.exec_module(released)
torch.manual_seed(0)
arrays = {}
for name, (blocks, scale) in GENERATORS.items():
    steps, rows, columns = GRID
    make = released._MaskGenerator(
        crop_size=(16 * rows, 16 * columns),
        num_frames=2 * steps,
        spatial_patch_size=16,
        temporal_patch_size=2,
        spatial_pred_mask_scale=(scale, scale),
        aspect_ratio=ASPECT,
        npred=blocks,
    )
    drawn, place = [], make._sample_block_mask

    def recorded(size, drawn=drawn, place=place):
        mask = place(size)
        _, y, x = torch.argwhere(mask == 0)[0].tolist()
        drawn.append((y, x))
        return mask

    make._sample_block_mask = recorded
    for batch in range(BATCHES):
        drawn.clear()
        seen, wanted = make(CLIPS)
        assert len(drawn) == CLIPS * blocks, "a clip was drawn twice; take another seed"
        generator = torch.Generator()  # as the code draws the aspect ratio
        generator.manual_seed(batch)
        aspect = ASPECT[0] + torch.rand(3, generator=generator)[2].item() * (ASPECT[1] - ASPECT[0])
        arrays[f"{name}_{batch}_aspect"] = np.float64(aspect)
        arrays[f"{name}_{batch}_corners"] = np.array(drawn).reshape(CLIPS, blocks, 2)
        arrays[f"{name}_{batch}_seen"] = seen.numpy().astype(np.int16)
        arrays[f"{name}_{batch}_wanted"] = wanted.numpy().astype(np.int16)
np.savez_compressed(Path(__file__).parent / "vjepa_masks.npz", **arrays)

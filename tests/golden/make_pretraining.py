"""Makes pretraining.npz of hf_videomae_pretraining and hf_vjepa2_pretraining: what transformers'
pre-training models of these weights say of given clips and masks.

In an environment with torch and transformers: python tests/golden/make_pretraining.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import VideoMAEForPreTraining, VJEPA2Model

FOLDER = Path(__file__).parent
MEAN, STD = (torch.tensor(x) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def make_videomae() -> None:
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


def make_vjepa2() -> None:
    """The model's own forward encodes whole clips and gathers after that, so its layers are called
    here as V-JEPA 2's training calls them: the encoder gets the visible tokens alone."""
    rng = np.random.default_rng(0)
    folder = FOLDER / "hf_vjepa2_pretraining"
    model = VJEPA2Model.from_pretrained(folder)
    config = model.config
    side, steps = config.crop_size, config.frames_per_clip // config.tubelet_size
    tokens = steps * (side // config.patch_size) ** 2
    clips = rng.integers(0, 256, (2, config.frames_per_clip, side, side, 3)).astype(np.uint8)
    pixels = ((torch.tensor(clips) / 255 - MEAN) / STD).permute(0, 1, 4, 2, 3)
    order = np.argsort(rng.random((2, tokens)), axis=1)
    seen, wanted = np.sort(order[:, :3]), np.sort(order[:, 3:7])  # one token is neither
    context, target = (torch.tensor(x) for x in (seen, wanted))
    gather = lambda x, at: torch.gather(x, 1, at[..., None].expand(-1, -1, x.shape[-1]))

    encoder, predictor = model.encoder, model.predictor
    with torch.no_grad():
        h = model(pixels, skip_predictor=True).last_hidden_state
        h = torch.nn.functional.layer_norm(gather(h, target), (h.shape[-1],))
    x = gather(encoder.embeddings(pixels), context)
    for layer in encoder.layer:
        x = layer(x, context)[0]
    x = encoder.layernorm(x)
    encoded = x.detach().numpy()
    x, places = predictor.embeddings(x, [context], [target])
    argsort = torch.argsort(places, dim=1)
    x, places = predictor.sort_tokens(x, places, argsort)
    for layer in predictor.layer:
        x = layer(x, places)[0]
    x = predictor.unsort_tokens(predictor.layernorm(x), argsort)
    z = predictor.proj(x[:, context.shape[1] :])
    loss = (z - h).abs().mean()
    loss.backward()
    arrays = {"input": clips, "seen": seen, "wanted": wanted, "encoded": encoded}
    arrays |= {"target": h.numpy(), "predicted": z.detach().numpy(), "loss": loss.detach().numpy()}
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        arrays[f"grads/{key}"] = value.grad.numpy()
    np.savez_compressed(folder / "pretraining.npz", **arrays)
    print(transformers.__version__, float(loss))


if __name__ == "__main__":
    make_videomae()
    make_vjepa2()

"""VideoMAE ViT-B (2203.12602), fine-tuned on Kinetics-400 by its published script.

    python -m vivit.train --config=configs/videomae_b_k400.py --workdir=runs/videomae_b_k400 \\
        --config.init.path=WEIGHTS
    python -m vivit.compile --config=configs/videomae_b_k400.py --target=h100:8 --frame=256x340

Data: as configs/vivit_b_k400.py. WEIGHTS: VideoMAE's ViT-B after 800 epochs of pre-training in
HuggingFace's format. Its model zoo has 79.4 % top-1 in 5 x 3 views for this script. Source: its
scripts/kinetics and run_class_finetuning.py, whose crops are random resized ones; here the scale is
drawn as in TimeSformer. This config has not been trained here.
"""

from configs import vivit_b_k400


def get_config():
    config = vivit_b_k400.get_config()
    config.model.update(readout="mean_then_norm", qkv_bias="qv", activation="gelu")
    config.model.update(position="sinusoidal_interleaved", clip=(16, 224, 224), drop_path=0.1)
    config.model.update(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
    config.data.update(batch_size=512)
    config.data.sampling.stride_frames = 4
    config.data.views.update(temporal=5, spatial=3, short_side=None)
    config.augment.short_side = (256, 320)
    config.augment.update(vivit_b_k400.NO_COLOUR)
    config.augment.update(operations=4, magnitude=7.0, erase=0.25, mixup=0.8, cutmix=1.0)
    config.init.position_resize = "linear"
    config.optim.update(name="adamw(weight_decay=0.05)", lr=1e-3, lr_batch_size=256)
    config.optim.update(schedule="cosine(floor=2e-6)", layer_decay=0.75, clip_norm=None)
    config.optim.warmup_fraction = 5 / 100
    config.train.update(epochs=100.0, label_smoothing=0.1, accumulate=4)
    return config

"""Masked autoencoding of a folder of films without labels (VideoMAE, 2203.12602): a small encoder.

    python -m vivit.data prepare films.csv data --short-side 128 --name films
    python -m vivit.train --config=configs/mae_films.py --workdir=runs/mae_films \\
        --config.data.name=films
    python -m vivit.features --workdir=runs/mae_films --out=features/films

films.csv: a manifest with the columns path and split. Half of the time steps are hidden, as in
configs/mae_digits.py.
"""

from configs import mae_digits


def get_config():
    config = mae_digits.get_config()
    config.task.name = "mae(mask='frame(0.5)', width=96, depth=2, heads=4, normalise=False)"
    config.model.update(clip=(16, 96, 96), tubelet=(2, 16, 16), width=192, heads=6, mlp_dim=768)
    config.data.name = "films"
    config.data.sampling.stride_frames = 2
    config.augment.update(short_side=(96, 128), flip=0.5)
    config.train.update(steps=20_000, eval_every=1000, checkpoint_every=1000, average_decay=0.998)
    return config

"""The motion of moving digits from 80 labels: by a new model, or one that was pre-trained.

    python -m vivit.train --config=configs/few_labels_digits.py --workdir=runs/scratch
    python -m vivit.train --config=configs/few_labels_digits.py --workdir=runs/fine_tuned \\
        --config.init.path=runs/mae_digits --config.init.checkpoint=latest

The model of mae_digits, with a head. docs/pretraining.md has the scores.
"""

from configs import mae_digits


def get_config():
    config = mae_digits.get_config()
    config.task.name = "classify"
    config.data.update(label="motion", train_clips=80)
    config.model.classes = 8
    config.optim.update(name="adamw", warmup_fraction=0.1)
    config.train.update(steps=400, eval_every=50, checkpoint_every=100)
    return config

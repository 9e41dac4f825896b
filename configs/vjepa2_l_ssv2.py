"""V-JEPA 2 ViT-L (2506.09985), pre-trained on Something-Something v2 without its labels.

    python -m vivit.train --config=configs/vjepa2_l_ssv2.py --workdir=runs/vjepa2_l_ssv2
    python -m vivit.compile --config=configs/vjepa2_l_ssv2.py --target=h100:128 --frame=288x384

Data: as configs/vivit_l_fe_ssv2.py. Source and expected score: as configs/vjepa2_l_k400.py, of
whose mixture this data set is a part. This config has not been trained here.
"""

from configs import vjepa2_l_k400


def get_config():
    config = vjepa2_l_k400.get_config()
    config.data.name = "something_something_v2"
    return config

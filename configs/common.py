"""The base of every config: all keys with their defaults, locked. A config changes what differs.

`vivit/settings.py` lists the keys, their types and what they mean.
"""

from ml_collections import ConfigDict

from vivit.config import as_config_dict
from vivit.settings import Config


def get_config() -> ConfigDict:
    """A factorised encoder without sizes, on the moving digits."""
    return as_config_dict(Config())

"""The legend of array axes, as jaxtyping aliases. One letter, one meaning, in the whole project.

B clips · F frames · H W pixels · C channels · T tubelet steps · S places per step ·
N tokens of one attention set · D width · h heads · k channels per head · L layers · V views
"""

from jax import Array
from jaxtyping import Float, Int, Shaped

Clips = Shaped[Array, "B F H W C"]  # uint8 in [0, 255], or floats in [-1, 1]
Grid = Float[Array, "B T S D"]  # tokens, always on their space-time grid
HeadGrid = Float[Array, "B T S h k"]  # queries, keys and values of such a grid
Logits = Float[Array, "B classes"]
Labels = Int[Array, "B"]

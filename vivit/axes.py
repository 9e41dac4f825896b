"""The legend of array axes, as jaxtyping aliases. One letter, one meaning, in the whole project.

B clips · F frames · H W pixels · C channels · T time steps · S spatial tokens per time step, Y rows
of X · N tokens of one attention set · D width · h heads · g heads of keys and values ·
k channels per head · c channels of the values · L layers · V views
"""

import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

Clips = Shaped[Array | np.ndarray, "B F H W C"]  # uint8 in [0, 255], or floats in [-1, 1]
Grid = Float[Array, "B T S D"]  # tokens, always on their space-time grid
NewGrid = Float[Array, "B T2 S2 D"]  # a grid that has gained class tokens or lost pooled axes
Levels = Float[Array, "B T2 S2 _"]  # a grid whose tokens may be those of several levels, D each
HeadGrid = Float[Array, "B T S h k"]  # queries of such a grid
KeyGrid = Float[Array, "B T S g k"]  # its keys; h is a multiple of their heads
ValueGrid = Float[Array, "B T S g c"]  # its values
MixedGrid = Float[Array, "B T S h c"]  # what attention makes of them
Logits = Float[Array, "B classes"]
Labels = Int[Array, " B"]

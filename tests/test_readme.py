"""The README's Python and commands work."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.conftest import ROOT
from tests.pretrained.flax_files import below, write_vision_transformer
from tests.scenic import GOLDEN
from vivit.attention import PATTERNS
from vivit.cost import abstract_params


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


BLOCKS = python_blocks(ROOT / "README.md")


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_there_are_no_other_blocks():
    assert len(BLOCKS) == 3  # each has a test below


def test_your_own_pattern_takes_twelve_lines():
    source = block("@pattern")
    definition = source[: source.index("small =")]
    assert len([line for line in definition.splitlines() if line.strip()]) <= 12
    names = {}
    try:
        exec(source, names)
        model = names["model"].with_settings(depth=1, width=16, heads=2, mlp_dim=16)
        clips = jnp.zeros((1, 8, 64, 64, 3))
        for kernel in ("dense", "chunked"):
            other = model.with_settings(kernel=kernel)
            params = abstract_params(other)
            assert "attention_row_time" in params["stage_0"]["layer_0"]
            logits = jax.eval_shape(other.apply, {"params": params}, clips)
            assert logits.shape == (1, 10)
        grid = jnp.arange(8.0).reshape(1, 2, 4, 1, 1)  # 2 time steps of 2 x 2 spatial tokens
        mean = lambda q, k, v: jnp.broadcast_to(v.mean(axis=2, keepdims=True), v.shape)
        out = names["row_time"](grid, grid, grid, mean, space=(2, 2))
        assert out.ravel().tolist() == [2.5, 2.5, 4.5, 4.5, 2.5, 2.5, 4.5, 4.5]
    finally:
        PATTERNS._items.pop("row_time", None)


def test_public_weights(tmp_path):
    arrays = np.load(GOLDEN / "scenic_import_token_fe_tile.npz")
    image = write_vision_transformer(tmp_path / "B_16.npz", below(arrays, "source"))
    source = (
        block("pretrained.load").replace('"B_16.npz"', "image").replace("32, 224, 224", "8, 16, 16")
    )
    names = {"image": image}
    exec(source, names)
    assert names["model"].config.grid == (4, 4, 4)
    assert names["loaded"].params["head"]["kernel"].shape == (48, 400)


def test_looking_inside(tiny_run):
    source = block("open_run").replace('open_run("runs/moving_digits")', "open_run(folder)")
    names = {"folder": tiny_run}
    exec(source, names)
    assert names["parts"].shape == (8, 4, 4)
    assert names["over_time"].shape == (1, 8, 2, 4, 4)


def test_the_commands_of_the_readme_are_those_of_the_makefile():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    makefile = makefile.replace("$(BIN)/", "").replace("$(RUN)", "runs/moving_digits")
    start = readme[readme.index("## Train") : readme.index("### Your own videos")]
    lines = re.findall(r"^    (python -m vivit\.(?:data|train|evaluate|analysis).*)$", start, re.M)
    assert len(lines) == 4
    for line in lines:
        assert line in makefile, line


def test_the_picture_is_small():
    assert (ROOT / "docs" / "rollout.gif").stat().st_size < 1e6

"""The README's Python really works."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.conftest import ROOT
from tests.pretrained.flax_files import below, write_vision_transformer
from tests.scenic import GOLDEN
from vivit.attention import PATTERNS
from vivit.cost import abstract_params

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_the_model_in_python():
    names = {}
    exec(block("model.init"), names)
    assert names["logits"].shape == (2, 10)


def test_a_pattern_of_ones_own_takes_ten_lines():
    source = block("@pattern")
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    names = {}
    try:
        exec(source, names)
        model = names["model"].clone(depth=1, width=16, heads=2, mlp_dim=16)
        clips = jnp.zeros((1, 8, 64, 64, 3))
        for kernel in ("dense", "chunked"):
            other = model.clone(kernel=kernel)
            params = abstract_params(other)
            assert "attention_next_step" in params["stage_0"]["layer_0"]
            logits = jax.eval_shape(other.apply, {"params": params}, clips)
            assert logits.shape == (1, 10)
        q = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
        out = names["next_step"](q, q, q, lambda q, k, v: v)
        assert out.ravel().tolist() == [1, 2, 3, 0]
    finally:
        PATTERNS._items.pop("next_step", None)


def test_weights_of_others(tmp_path):
    arrays = np.load(GOLDEN / "scenic_import_token_fe_tile.npz")
    image = write_vision_transformer(tmp_path / "B_16.npz", below(arrays, "source"))
    source = (
        block("pretrained.load").replace('"B_16.npz"', "image").replace("32, 224, 224", "8, 16, 16")
    )
    names = {"image": image}
    exec(source, names)
    assert names["model"].grid == (4, 4, 4)
    assert names["loaded"].params["head"]["kernel"].shape == (48, 400)


def test_where_it_looks(tiny_run, monkeypatch):
    source = block("open_run").replace('open_run("runs/moving_digits")', "open_run(folder)")
    names = {"folder": tiny_run}
    exec(source, names)
    assert names["shares"].shape == (8, 4, 4)
    assert names["steps"].shape == (1, 8, 2, 4, 4)


def test_the_commands_of_the_readme_are_those_of_the_makefile():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    makefile = makefile.replace("$(BIN)/", "").replace("$(RUN)", "runs/moving_digits")
    start = readme[readme.index("## Start") : readme.index("## The model in Python")]
    lines = re.findall(r"^    (python -m vivit\.(?:data|train|evaluate|analysis).*)$", start, re.M)
    assert len(lines) == 4
    for line in lines:
        assert line in makefile, line

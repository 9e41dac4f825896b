"""What the tests of mae and jepa do with the pre-training models of transformers."""

import jax
from safetensors.numpy import save_file

import vivit
from vivit.pretrained import load


def loaded_network(task, folder):
    """The network of a task around the model of a folder, and its parameters."""
    found = load(folder)
    network = task.network(vivit.build({**found.model_config, "classes": 0}))
    drawn = network.init(jax.random.key(0), *network.example())["params"]
    return network, task.start(drawn, found.params, found.around)


def as_ours(gradients, of, folder):
    """Gradients by transformers' names as those by ours: parameters are rearranged linearly. of:
    the folder of the model. folder: where they may be written."""
    folder.mkdir()
    save_file(gradients, folder / "model.safetensors")
    (folder / "config.json").write_text((of / "config.json").read_text())
    found = load(folder)
    return {**found.around, "encoder": found.params}

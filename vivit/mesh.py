"""Names of the axes of the device mesh. No JAX: the rules of a config name them."""

# DATA and FSDP split the clips, SEQUENCE splits the tokens of each clip.
DATA, FSDP, SEQUENCE = "data", "fsdp", "sequence"
MESH_AXES = (DATA, FSDP, SEQUENCE)

"""Names of the axes of the device mesh. No JAX: the rules of a config name them."""

# DATA and FSDP split the clips, FSDP the parameters too; TENSOR splits attention heads and the
# hidden channels of MLPs, SEQUENCE the tokens of each clip.
DATA, FSDP, TENSOR, SEQUENCE = "data", "fsdp", "tensor", "sequence"
MESH_AXES = (DATA, FSDP, TENSOR, SEQUENCE)
CLIP_AXES = (DATA, FSDP)

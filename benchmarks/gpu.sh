#!/bin/sh
# All that is measured on a GPU, from the repository's root: benchmarks/gpu.sh OUT
# Needs pip install '.[cuda,dev]'; the comparison with HuggingFace needs torch and transformers, and
# its row says so where they are missing. A part that fails does not stop the others.
OUT=${1:?"usage: benchmarks/gpu.sh OUT, the folder for the tables"}
mkdir -p "$OUT"
nvidia-smi --query-gpu=name,driver_version --format=csv > "$OUT/gpu.csv"
python -m pytest -q -m gpu 2>&1 | tee "$OUT/tests.txt"
python -m benchmarks.suites accelerator --out "$OUT"
for model in joint factorised_encoder; do
    python benchmarks/side_by_side.py $model --batch 16 --dtype bfloat16 --kernel fused \
        | tee "$OUT/side_by_side_$model.md"
done
python -m benchmarks.suites runs --repeats 3 --out "$OUT"
python -m benchmarks.suites kernels --out "$OUT"

#!/usr/bin/env bash
# Converts both sizes of Wan2.1-I2V-14B to int8 for LightX2V, one after the other.
#
#   examples/batch_convert.sh /path/to/models /path/to/converted
#
# The folder of models holds Wan2.1-I2V-14B-480P and Wan2.1-I2V-14B-720P. Interrupted, or run again: what is finished
# is kept. The script ends with the first conversion that fails (exit code 1: refused or failed, 2: not understood).
set -euo pipefail

models=${1:?"usage: $0 MODELS CONVERTED"}
converted=${2:?"usage: $0 MODELS CONVERTED"}

for size in 480P 720P; do
  model-converter convert \
    --source "$models/Wan2.1-I2V-14B-$size/" \
    --output "$converted/Wan2.1-I2V-14B-${size}_int8" \
    --output_name "wan2.1_i2v_${size,,}_int8" \
    --output_ext .safetensors \
    --model_type wan_dit \
    --linear_type int8 \
    --quantized \
    --single_file \
    --copy_no_weight_files
done

#!/usr/bin/env bash
# Measures on a GPU with JAX and PyTorch, without TensorFlow and without a
# network, for about eight minutes. What comes first is worth most; each row is
# written as soon as it is known.
#
#     OUT=folder [DATA=images.npz JUDGE=judge.keras] [SECONDS_IN_ALL=480] \
#         tools/accelerator.sh [--device cpu --quick]
#
# With DATA, uint8 `images` (n, 32, 32, 3), and JUDGE, a classifier as
# tools/judge.py makes it, the time that is left trains critics of SN-GAN's CNN
# beside each other and measures their FID.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?names the folder to write to}"
: "${SECONDS_IN_ALL:=480}"
end=$((SECONDS_IN_ALL - 20 + $(date +%s)))
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
export XLA_PYTHON_CLIENT_PREALLOCATE=false

part() {  # backend, limit in seconds, part and arguments
  local backend=$1 limit=$2
  shift 2
  echo "+ $backend $* (after $SECONDS s)"
  KERAS_BACKEND=$backend timeout "$limit" python3 tools/accelerator.py "$@" \
    --output "$OUT" 2>>"$OUT/errors-$backend-$1.txt" || echo "! exit code $?"
}

nvidia-smi >"$OUT/card.txt" 2>&1
part jax 40 about "$@"
part torch 40 about "$@"
part jax 150 updates --networks "CNN 32" "$@"
part jax 60 norms "$@"
part torch 60 updates --networks "CNN 32" --dtypes float32 "$@"
part jax 100 updates --networks "ResNet 32" --dtypes float32 "$@"
part jax 100 updates --networks "SPADE 256x512" --dtypes float32 "$@"
part torch 50 norms "$@"
[[ -n ${DATA:-} && -n ${JUDGE:-} ]] || exit 0
for critic in san none sn r1 san_project san_same; do
  part jax $((end + 20 - $(date +%s))) train --critic "$critic" --data "$DATA" \
    --judge "$JUDGE" --until "$end" "$@" &
done
wait

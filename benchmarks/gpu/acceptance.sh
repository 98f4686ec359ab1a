#!/usr/bin/env bash
# Everything that has to be seen on a GPU, in under nine minutes and in parts that run one by one.
#
#     bash benchmarks/gpu/acceptance.sh [build] [tests] [layers] [training] [report]      (default: all of them)
#
# Environment:
#     OUT       folder of the results (default: benchmarks/results/gpu-<name>-<commit>)
#     PYTHON    interpreter that has torch (default: python3)
#     COMMIT    what to call this tree where there is no git beside it
#     WORKERS   test processes, where pytest-xdist is there (default: 6)
#     BUILD_SECONDS, TESTS_SECONDS, LAYERS_SECONDS, TRAINING_SECONDS, REPORT_SECONDS      limits of the parts
#     SSCONV_CUDA_ARCHS what the CUDA kernels are built for (default: this card)
#     LAYERS_OPTIONS, TRAINING_OPTIONS      further options, such as "--part 1/3 --dtype fp16", "--presets heart"
#
# Exit code: 0 everything passed; 1 a part failed (the others ran all the same) and is named; 2 there is no GPU;
# 64 there is no such part.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PARTS=(build tests layers training report)
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8} # cuBLAS repeats itself in the tests only with it

limit_of() { # seconds; together 537
  case $1 in
    build) echo "${BUILD_SECONDS:-75}" ;;
    tests) echo "${TESTS_SECONDS:-160}" ;;
    layers) echo "${LAYERS_SECONDS:-170}" ;;
    training) echo "${TRAINING_SECONDS:-112}" ;;
    report) echo "${REPORT_SECONDS:-20}" ;;
    *) return 1 ;;
  esac
}

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

write_environment() { "$PYTHON" -m benchmarks.gpu.environment --write "$OUT/environment.json" "$@"; }

part_build() {
  local how=""
  # Only for this card: the others take minutes more.
  export SSCONV_CUDA_ARCHS=${SSCONV_CUDA_ARCHS:-$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
  if "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps -e .; then
    how="pip install --no-build-isolation --no-deps -e ."
  elif "$PYTHON" setup.py build_ext --inplace; then
    how="python setup.py build_ext --inplace (pip could not)"
  fi
  write_environment --build "${how:-failed}"
  [ -n "$how" ] || { echo "build: neither pip nor setup.py could build" >&2; return 1; }
}

part_tests() {
  local package files=() options=()
  for package in pytest hypothesis; do
    has "$package" || { echo "tests: $package is not installed; no test was run" | tee "$OUT/tests.txt" >&2; return 1; }
  done
  # Only files with such tests: others may import what is not installed on this machine.
  mapfile -t files < <(grep -rlE 'mark\.gpu\b' --include='test_*.py' tests)
  if has xdist; then options+=(-n "${WORKERS:-6}"); else echo "tests: pytest-xdist is not installed; one process"; fi
  if has pytest_benchmark; then options+=(-p no:benchmark); fi
  "$PYTHON" -m pytest -m gpu -ra --tb=short -p no:cacheprovider --durations=10 --junitxml="$OUT/tests.xml" \
    "${options[@]}" "${files[@]}" 2>&1 | tee "$OUT/tests.txt"
}

part_layers() { # budgets under the limit, so that the last layer ends in time
  local options=() status=0
  read -ra options <<<"${LAYERS_OPTIONS:-}"
  "$PYTHON" -m benchmarks.gpu.layers --out "$OUT/layers.jsonl" --budget "$((LIMIT - 60))" ${options[@]+"${options[@]}"} || status=$?
  "$PYTHON" -m benchmarks.gpu.memory_bound --out "$OUT/memory-bound.jsonl" --budget 6 || status=$?
  "$PYTHON" -m benchmarks.gpu.upsampling --out "$OUT/upsampling.jsonl" --budget 10 || status=$?
  return "$status"
}

part_training() { # first what a bar is set for
  local options=() status=0 first=$((LIMIT * 2 / 5))
  read -ra options <<<"${TRAINING_OPTIONS:-}"
  "$PYTHON" -m benchmarks.gpu.training --out "$OUT/training.jsonl" --budget "$first" \
    --presets brain --edges 64 128 --precision bf16 --backends cuda --compared || status=$?
  "$PYTHON" -m benchmarks.gpu.training --out "$OUT/training.jsonl" --budget "$((LIMIT - first - 25))" \
    ${options[@]+"${options[@]}"} || status=$?
  return "$status"
}

part_report() {
  [ -f "$OUT/environment.json" ] || write_environment
  "$PYTHON" -m benchmarks.operator.report "$OUT"
}

if [ "${1:-}" = --inside ]; then # one part, under its time limit
  LIMIT=$(limit_of "$2")
  "part_$2"
  exit
fi

for part in "$@"; do
  limit_of "$part" >/dev/null || { echo "gpu_acceptance: no part '$part'; there are: ${PARTS[*]}" >&2; exit 64; }
done
[ "$#" -gt 0 ] || set -- "${PARTS[@]}"

name=$("$PYTHON" -m benchmarks.gpu.environment --folder --program gpu_acceptance) || exit "$?"
export OUT="${OUT:-benchmarks/results/$name}"
mkdir -p "$OUT"

failed=()
for part in "$@"; do
  limit=$(limit_of "$part")
  start=$SECONDS status=0
  echo "== $part (at most $limit s)"
  timeout --kill-after=10 "$limit" bash benchmarks/gpu/acceptance.sh --inside "$part" || status=$?
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "$part: stopped at its limit of $limit s" >&2
  fi
  echo "== $part: exit code $status after $((SECONDS - start)) s"
  [ "$status" -eq 0 ] || failed+=("$part")
done

echo "results: $OUT"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "gpu_acceptance: failed: ${failed[*]}" >&2
  exit 1
fi

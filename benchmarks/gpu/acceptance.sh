#!/usr/bin/env bash
# Builds, tests and measures ssconv on a GPU, in under nine minutes.
#
#     bash benchmarks/gpu/acceptance.sh [build] [verify] [tests] [layers] [training] [report]      (default: all parts)
#
# Environment:
#     OUT       folder of the results (default: benchmarks/results/gpu-<name>-<commit>)
#     PYTHON    interpreter that has torch (default: python3)
#     COMMIT    the name of this tree where it has no git
#     WORKERS   test processes, where pytest-xdist is installed (default: 6)
#     BUILD_SECONDS, VERIFY_SECONDS, TESTS_SECONDS, LAYERS_SECONDS, TRAINING_SECONDS, REPORT_SECONDS      time limits of
#                                           the parts
#     SSCONV_CUDA_ARCHS                     architectures of the CUDA kernels (default: this card's)
#     LAYERS_OPTIONS, TRAINING_OPTIONS      more options, such as "--part 1/3 --dtype fp16", "--presets heart"
#
# Exit code: 0 all parts passed; 1 a part failed and is named at the end (the others still ran); 2 there is no GPU;
# 64 a part of that name does not exist.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PARTS=(build verify tests layers training report)
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8} # makes cuBLAS deterministic in the tests

limit_of() { # in seconds; 535 in all
  case $1 in
    build) echo "${BUILD_SECONDS:-75}" ;;
    verify) echo "${VERIFY_SECONDS:-60}" ;;
    tests) echo "${TESTS_SECONDS:-130}" ;;
    layers) echo "${LAYERS_SECONDS:-150}" ;;
    training) echo "${TRAINING_SECONDS:-100}" ;;
    report) echo "${REPORT_SECONDS:-20}" ;;
    *) return 1 ;;
  esac
}

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

write_environment() { "$PYTHON" -m benchmarks.gpu.environment --write "$OUT/environment.json" "$@"; }

part_build() {
  local how=""
  # Other architectures take minutes more.
  export SSCONV_CUDA_ARCHS=${SSCONV_CUDA_ARCHS:-$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
  if "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps -e .; then
    how="pip install --no-build-isolation --no-deps -e ."
  elif "$PYTHON" setup.py build_ext --inplace; then
    how="python setup.py build_ext --inplace (pip failed)"
  fi
  write_environment --build "${how:-failed}"
  [ -n "$how" ] || { echo "build: pip and setup.py both failed" >&2; return 1; }
}

part_verify() { # every family of kernels against float64; what fails here does not serve in the parts after it
  "$PYTHON" -m ssconv verify --report "$OUT/verify.json"
}

part_tests() {
  local package files=() options=()
  for package in pytest hypothesis; do
    has "$package" || { echo "tests: $package is not installed; no test was run" | tee "$OUT/tests.txt" >&2; return 1; }
  done
  # Only files with such tests: others may import packages that this machine lacks.
  mapfile -t files < <(grep -rlE 'mark\.gpu\b' --include='test_*.py' tests)
  if has xdist; then options+=(-n "${WORKERS:-6}"); else echo "tests: pytest-xdist is not installed; one process"; fi
  if has pytest_benchmark; then options+=(-p no:benchmark); fi
  "$PYTHON" -m pytest -m gpu -ra --tb=short -p no:cacheprovider --durations=10 --junitxml="$OUT/tests.xml" \
    "${options[@]}" "${files[@]}" 2>&1 | tee "$OUT/tests.txt"
}

part_layers() { # the budgets leave time for the last layer
  local options=() status=0
  read -ra options <<<"${LAYERS_OPTIONS:-}"
  "$PYTHON" -m benchmarks.gpu.layers --out "$OUT/layers.jsonl" --budget "$((LIMIT - 60))" ${options[@]+"${options[@]}"} || status=$?
  "$PYTHON" -m benchmarks.gpu.memory_bound --out "$OUT/memory-bound.jsonl" --budget 6 || status=$?
  "$PYTHON" -m ssconv choices >"$OUT/choices.txt" || status=$?
  return "$status"
}

part_training() { # first the presets that have a target
  local options=() status=0 first=$((LIMIT * 2 / 5))
  read -ra options <<<"${TRAINING_OPTIONS:-}"
  "$PYTHON" -m benchmarks.gpu.training --out "$OUT/training.jsonl" --budget "$first" \
    --presets brain --edges 64 128 --precision bf16 --backends auto --compared || status=$?
  "$PYTHON" -m benchmarks.gpu.training --out "$OUT/training.jsonl" --budget "$((LIMIT - first - 25))" \
    ${options[@]+"${options[@]}"} || status=$?
  return "$status"
}

part_report() {
  [ -f "$OUT/environment.json" ] || write_environment
  "$PYTHON" -m benchmarks.gpu.report "$OUT"
}

if [ "${1:-}" = --inside ]; then # one part, under its time limit
  LIMIT=$(limit_of "$2")
  "part_$2"
  exit
fi

for part in "$@"; do
  limit_of "$part" >/dev/null || { echo "acceptance: no part '$part'; the parts are: ${PARTS[*]}" >&2; exit 64; }
done
[ "$#" -gt 0 ] || set -- "${PARTS[@]}"

name=$("$PYTHON" -m benchmarks.gpu.environment --folder --program acceptance) || exit "$?"
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
  echo "acceptance: failed: ${failed[*]}" >&2
  exit 1
fi

#!/usr/bin/env bash
# What to run first on a GPU, in parts of under ten minutes each:
#
#     tests/gpu/first_run.sh measure     every kernel at a tiny size, then the benchmark with its profile
#     tests/gpu/first_run.sh tests       the tests of the GPU
#     tests/gpu/first_run.sh counters    compute-sanitizer, and NVIDIA's profiler on each operation
#
# Nothing has to be installed but PyTorch, PyTorch Geometric, CuPy, Numba and pytest; PYTHON names the
# interpreter, where that is not python3. What it writes lies in OUT (outputs/gpu). A part goes on after
# a failure, and ends with an error if anything failed. docs/guides/gpu.md says how to read the output.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
out=${OUT:-outputs/gpu}
mkdir -p "$out"
failed=()

step() {
    printf '\n== %s (%d s)\n' "$1" "$SECONDS"
    shift
    "$@" || failed+=("$*")
}

measure() {
    step "the GPU" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    step "every row at a tiny size" "$python" -m benchmarks --device cuda --smoke
    step "operations and layers" \
        "$python" -m benchmarks --device cuda --json "$out/ops.json"
    step "GrootV" "$python" -m benchmarks --device cuda --op grootv --json "$out/grootv.json"
    if "$python" -c "import transformers" 2> /dev/null; then
        step "GrootL" "$python" -m benchmarks --device cuda --op grootl --json "$out/grootl.json"
    fi
}

# What measures memory or waiting is alone on the GPU; the rest shares it, where pytest-xdist is there.
ALONE="tests/gpu/test_memory.py tests/gpu/test_synchronization.py tests/gpu/test_streams.py"

tests() {
    local options=(-q --durations=10)
    # shellcheck disable=SC2086
    step "alone" "$python" -m pytest "${options[@]}" $ALONE
    local rest=()
    for file in tests/gpu/test_*.py; do
        [[ " $ALONE " == *" $file "* ]] || rest+=("$file")
    done
    if "$python" -c "import xdist" 2> /dev/null; then
        options+=(--numprocesses 8 --dist worksteal)
    fi
    step "the rest" "$python" -m pytest "${options[@]}" "${rest[@]}"
}

counters() {
    step "compute-sanitizer" env PYTHON="$python" tests/gpu/compute_sanitizer.sh
    if ! command -v ncu > /dev/null; then
        echo "ncu, NVIDIA's profiler, is not on the PATH: no counters" >&2
        return
    fi
    for operation in minimum_spanning_forest root_forest tree_scan selective_tree_scan; do
        step "counters of $operation" ncu --profile-from-start off --set basic \
            --log-file "$out/ncu_$operation.txt" \
            "$python" -m benchmarks --device cuda --op "$operation" --repeats 1
    done
}

run() {
    "$1"
    [ "${#failed[@]}" -eq 0 ] && return
    printf '\nfailed:\n'
    printf '  %s\n' "${failed[@]}"
    return 1
}

case ${1:-} in
    measure | tests | counters) run "$1" 2>&1 | tee "$out/$1.log" ;;
    *)
        echo "usage: tests/gpu/first_run.sh measure|tests|counters" >&2
        exit 2
        ;;
esac

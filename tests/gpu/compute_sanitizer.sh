#!/usr/bin/env bash
# Runs every kernel on small inputs under NVIDIA's compute-sanitizer, a part of the CUDA toolkit:
#
#     tests/gpu/compute_sanitizer.sh                  memcheck, synccheck, initcheck and racecheck
#     tests/gpu/compute_sanitizer.sh memcheck         only the tools that are named
#
# It needs a GPU, the Python environment that the tests run in (its interpreter in PYTHON, where that
# is not python3), and compute-sanitizer on the PATH (or its path in COMPUTE_SANITIZER). Racecheck
# looks at shared memory alone, which cut_tiers uses. It takes a minute or so per tool; the first run
# also compiles the kernels, before the tools start. The exit code is 0 only if no tool reports an
# error. What SANITIZER_OPTIONS holds is added to the tool's options, such as
# "--kernel-regex kns=finish".
set -euo pipefail

sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || true)}
for folder in "${CUDA_HOME:-}" /usr/local/cuda; do
    [ -n "$sanitizer" ] || sanitizer=$(ls "$folder"/bin/compute-sanitizer 2>/dev/null || true)
done
if [ -z "$sanitizer" ]; then
    echo "compute-sanitizer is not on the PATH: install the CUDA toolkit or set COMPUTE_SANITIZER" >&2
    exit 2
fi

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
tools=("$@")
[ "${#tools[@]}" -gt 0 ] || tools=(memcheck synccheck initcheck racecheck)
read -ra extra <<< "${SANITIZER_OPTIONS:-}"

# Without the tool first: the compiled kernels stay in CuPy's cache on disk.
"$python" -m tests.gpu.sanitizer_cases

failed=()
for tool in "${tools[@]}"; do
    echo "== $tool"
    # With every tensor an allocation of its own, an access past its end is seen. Errors of API calls
    # are not reported: PyTorch probes for functions that a driver may lack. Importing PyTorch under
    # the tool takes longer than the tool waits for CUDA by default.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 \
        --report-api-errors no --launch-timeout 300 --target-processes all \
        ${extra[@]+"${extra[@]}"} "$python" -m tests.gpu.sanitizer_cases || failed+=("$tool")
done
if [ "${#failed[@]}" -gt 0 ]; then
    echo "not clean: ${failed[*]}" >&2
    exit 1
fi
echo "clean: ${tools[*]}"

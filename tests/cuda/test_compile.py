import re

import pytest

from groot_graph.ops.cuda import launch
from tests.equipment.cuda_variants import OPERATIONS, named, variants
from tests.equipment.ptx.compile import machine_code, nvrtc
from tests.equipment.ptx.registers import main, registers_in

# The oldest can do the least; what it takes, the newer ones seldom refuse.
CAPABILITIES = [
    75,
    *(pytest.param(newer, marks=pytest.mark.full) for newer in (80, 86, 89, 90, 100, 120)),
]


def in_every_variant(test):
    cases = [
        pytest.param(
            operation,
            macros,
            id=f"{operation}-{named(macros)}",
            marks=pytest.mark.full if number % 3 else (),
        )
        for operation in OPERATIONS
        for number, macros in enumerate(variants(operation))
    ]
    return pytest.mark.parametrize("operation, macros", cases)(test)


def kernel_names(source):
    bounds = r"(?:__launch_bounds__\(.*\)\s*)?"
    return re.findall(rf'extern "C" __global__ void\s+{bounds}(\w+)\(', source)


@pytest.mark.parametrize("capability", CAPABILITIES)
@in_every_variant
def test_compiles_without_a_warning_and_finds_registers_for_all(operation, macros, capability):
    if capability not in nvrtc().getSupportedArchs():
        pytest.skip(f"this NVRTC does not know compute capability {capability}")
    source = launch.source(operation)
    binary, log = machine_code(source, capability, macros, f"{operation}.cu", ("-v",))
    assert not warnings_in(log)
    names = kernel_names(source)
    assert names or "__global__" not in source
    for name in names:
        assert f".text.{name}\0".encode() in binary
    registers = registers_in(log)
    assert sorted(kernel.kernel for kernel in registers) == sorted(names)
    for kernel in registers:
        assert kernel.spilled == 0, kernel


def warnings_in(log: str) -> list[str]:
    """All but what `ptxas -v` reports."""
    reports = r"ptxas info|ptxas +\.|$"
    return [line for line in log.splitlines() if not re.match(reports, line.strip())]


def test_a_warning_and_an_error_are_told():
    unused = 'extern "C" __global__ void kernel(int* x) { int unused; }'
    _, log = machine_code(unused, 80, {}, "kernel.cu", ("-v",))
    assert any("never referenced" in line for line in warnings_in(log))
    named_value = 'extern "C" __global__ void kernel(int* x) { *x = NAME; }'
    with pytest.raises(RuntimeError, match="NAME"):
        machine_code(named_value, 80, {}, "kernel.cu")
    machine_code(named_value, 80, {"NAME": 1}, "kernel.cu")


def test_what_finds_no_register_is_told():
    """More sums than such large blocks have registers for."""
    each = "\n#pragma unroll\nfor (int i = 0; i < 90; ++i)"
    body = f"float y[90]; {each} y[i] = x[i * 7];"
    body += f"for (int j = 0; j < n; ++j) {{ {each} y[i] = y[i] * y[i] + j; }} {each} x[i] = y[i];"
    bounds = "__launch_bounds__(1024, 2)"
    text = f'extern "C" __global__ void {bounds} kernel(float* x, int n) {{ {body} }}'
    _, log = machine_code(text, 80, {}, "kernel.cu", ("-v",))
    (kernel,) = registers_in(log)
    assert kernel.number <= 32
    assert kernel.spilled > 0


def test_registers_of_every_kernel_are_printed(capsys):
    main(["--operation", "segments", "--capability", "80"])
    lines = capsys.readouterr().out.splitlines()
    (macros,) = variants("segments")
    assert lines[1] == f"segments: {named(macros)}"
    names = kernel_names(launch.source("segments"))
    assert sorted(line.split()[0] for line in lines[2:]) == sorted(names)

import re
from functools import cache

import pytest

from groot_graph.ops.cuda import launch, plan
from groot_graph.ops.minimum_spanning_forest import cuda as minimum_spanning_forest
from groot_graph.ops.root_forest import cuda as root_forest

nvrtc = pytest.importorskip("cupy", reason="NVRTC comes with CuPy").cuda.nvrtc

# The oldest can do the least; what it takes, the newer ones seldom refuse.
CAPABILITIES = [
    75,
    *(pytest.param(newer, marks=pytest.mark.full) for newer in (80, 86, 89, 90, 100, 120)),
]

SCANS = [
    {
        "VALUE": value,
        "INPUT": read,
        "DIRECTION": direction,
        "IS_BACKWARD": is_backward,
        "MOST_NESTED": plan.MOST_NESTED,
    }
    for is_backward in (0, 1)
    for direction, value, read in [
        ("BOTH", "float", "float"),
        ("BOTH", "double", "double"),
        ("UP", "float", "Half"),
        ("DOWN", "float", "BFloat16"),
    ]
]

# The macros that a file is compiled with: every value of each, if not every combination.
CONFIGURATIONS = {
    "minimum_spanning_forest": [minimum_spanning_forest.MACROS],
    "root_forest": [root_forest.MACROS],
    "segments": [plan.MACROS],
    "tree_scan": SCANS,
    "selective_tree_scan": [
        scan
        | {
            "STATES_AT_ONCE": 1 if scan["IS_BACKWARD"] or scan["DIRECTION"] == "BOTH" else 8,
            "HAS_CHUNKS": 0 if scan["IS_BACKWARD"] or scan["DIRECTION"] == "BOTH" else 1,
            "GROUP_SIZE": 32 if scan["IS_BACKWARD"] else 1,
        }
        for scan in SCANS
    ],
}

OPERATIONS = sorted(file.stem for file in launch.source_folder().glob("*.cu"))


def named(macros):
    return ",".join(f"{name}={value}" for name, value in macros.items()) or "no macros"


@cache
def supported_capabilities():
    try:
        return nvrtc.getSupportedArchs()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"NVRTC's library is missing: {error}")


def compile_cuda(source, capability, macros, name="kernel.cu"):
    """The machine code for one compute capability; the compiler's warnings count as errors."""
    program = nvrtc.createProgram(source, name, (), ())
    options = launch.options(tuple(sorted(macros.items())))
    try:
        nvrtc.compileProgram(program, (f"-arch=sm_{capability}", *options))
        log = nvrtc.getProgramLog(program).strip("\0\n ")
        assert not log, log
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program), pytrace=False)
    finally:
        nvrtc.destroyProgram(program)


def kernel_names(source):
    bounds = r"(?:__launch_bounds__\(.*\)\s*)?"
    return re.findall(rf'extern "C" __global__ void\s+{bounds}(\w+)\(', source)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("operation", "macros"),
    [
        pytest.param(operation, macros, id=f"{operation}-{named(macros)}")
        for operation in OPERATIONS
        for macros in CONFIGURATIONS.get(operation, [{}])
    ],
)
def test_compiles_without_a_warning(operation, macros, capability):
    if capability not in supported_capabilities():
        pytest.skip(f"this NVRTC does not know compute capability {capability}")
    source = launch.source(operation)
    binary = compile_cuda(source, capability, macros, f"{operation}.cu")
    names = kernel_names(source)
    assert names or "__global__" not in source
    for name in names:
        assert f".text.{name}\0".encode() in binary


def test_a_warning_and_an_error_are_failures():
    supported_capabilities()
    unused = 'extern "C" __global__ void kernel(int* x) { int unused; }'
    with pytest.raises(AssertionError, match="never referenced"):
        compile_cuda(unused, 80, {})
    with pytest.raises(pytest.fail.Exception, match="NAME"):
        compile_cuda('extern "C" __global__ void kernel(int* x) { *x = NAME; }', 80, {})
    compile_cuda('extern "C" __global__ void kernel(int* x) { *x = NAME; }', 80, {"NAME": 1})

"""What NVRTC makes of a CUDA source."""

from functools import cache

import pytest

from groot_graph.ops.cuda import launch

# What CuPy adds to the options of a source.
FLAGS = ("-ftz=true", "--device-as-default-execution-space", "-arch=compute_90")


@cache
def nvrtc():
    """CuPy's NVRTC; where there is none, the test that asks is skipped."""
    compiler = pytest.importorskip("cupy", reason="NVRTC comes with CuPy").cuda.nvrtc
    try:
        compiler.getSupportedArchs()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"NVRTC's library is missing: {error}")
    return compiler


def ptx_of(text: str, macros: "tuple[tuple[str, str | int], ...]", name: str) -> str:
    """The PTX of a CUDA source with given macros."""
    compiler = nvrtc()
    program = compiler.createProgram(text, name, (), ())
    try:
        compiler.compileProgram(program, (*launch.options(macros), *FLAGS))
        return compiler.getPTX(program).decode()
    except compiler.NVRTCError as error:
        raise RuntimeError(f"NVRTC failed:\n{compiler.getProgramLog(program)}") from error
    finally:
        compiler.destroyProgram(program)


def machine_code(
    text: str, capability: int, macros: dict, name: str, ptxas: "tuple[str, ...]" = ()
) -> tuple[bytes, str]:
    """The machine code of a CUDA source for one compute capability, and what the compiler says;
    `ptxas` is told further options.
    """
    compiler = nvrtc()
    program = compiler.createProgram(text, name, (), ())
    options = launch.options(tuple(sorted(macros.items())))
    further = (f"--ptxas-options={option}" for option in ptxas)
    try:
        compiler.compileProgram(program, (f"-arch=sm_{capability}", *options, *further))
        return compiler.getCUBIN(program), compiler.getProgramLog(program).strip("\0\n ")
    except compiler.NVRTCError as error:
        raise RuntimeError(f"NVRTC failed:\n{compiler.getProgramLog(program)}") from error
    finally:
        compiler.destroyProgram(program)

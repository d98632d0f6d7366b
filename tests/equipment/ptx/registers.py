"""Prints the registers that every CUDA kernel takes, by `ptxas`, which comes with NVRTC."""

import argparse
import re
from typing import NamedTuple

from groot_graph.ops.cuda import launch
from tests.equipment.cuda_variants import OPERATIONS, named, variants
from tests.equipment.ptx.compile import machine_code

REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spilled>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Registers(NamedTuple):
    """What a thread of a kernel takes.

    Attributes:
        kernel: The kernel's name.
        number: Its registers.
        stack: Bytes of local memory, for arrays that are indexed by a variable.
        spilled: Bytes of local memory for what finds no register.
    """

    kernel: str
    number: int
    stack: int
    spilled: int


def registers_in(log: str) -> list[Registers]:
    """What `ptxas -v` tells of every kernel."""
    return [
        Registers(
            found["kernel"], *(int(found[name]) for name in ("registers", "stack", "spilled"))
        )
        for found in REPORT.finditer(log)
    ]


def main(arguments: "list[str] | None" = None) -> None:
    parser = argparse.ArgumentParser("python -m tests.equipment.ptx.registers", description=__doc__)
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--capability", type=int, default=90)
    options = parser.parse_args(arguments)
    for operation in options.operation:
        source = launch.source(operation)
        for macros in variants(operation):
            _, log = machine_code(source, options.capability, macros, f"{operation}.cu", ("-v",))
            print(f"\n{operation}: {named(macros)}")
            for kernel, number, stack, spilled in registers_in(log):
                print(f"  {kernel:24} {number:4} registers {stack:5} stack {spilled:5} spilled")


if __name__ == "__main__":
    main()

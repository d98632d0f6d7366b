"""``python -m experiments NAME``: trains what is missing, prints the table, draws the picture."""

import importlib
import sys

from experiments.runner import NAMES, main


def command(argv: list[str]) -> int:
    name, *options = argv or ["--help"]
    if name not in NAMES:
        names = " | ".join(NAMES)
        print(f"usage: python -m experiments ({names}) [--help] [...]")
        return 0 if name in ("-h", "--help") else 2
    main(importlib.import_module(f"experiments.{name}").EXPERIMENT, options)
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))

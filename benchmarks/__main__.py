"""Measures operations or whole networks against their peers, all in one table."""

import argparse
import ast
import sys
from pathlib import Path

from benchmarks.harness import gpu
from benchmarks.harness.machine import describe
from benchmarks.harness.registry import GROUPS, ResultsDifferError, Row, rows_of, subjects
from benchmarks.harness.report import plot, read, table, write
from benchmarks.harness.units import positive


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [name for group in GROUPS for name in subjects(group)]
    parser.add_argument("--group", choices=GROUPS, default=GROUPS[0], help="of all rows (ops)")
    parser.add_argument("--op", action="append", choices=names, help="only this one, of any group")
    parser.add_argument("--row", metavar="TEXT", help="only rows whose name holds this text")
    parser.add_argument(
        "--set", action="append", type=_size, default=[], metavar="NAME=VALUE", dest="sizes",
        help="another size of the rows that have one of this name",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=15, help="rounds per row (15)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where ours runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot cost against size here")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, seconds, not judged")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, print a file")
    args = parser.parse_args(argv)
    if args.show and not args.show.is_file():
        parser.error(f"--show {args.show}: no such file")
    if args.show:
        return args
    if args.device == "cuda" and (missing := gpu.missing()):
        parser.error(f"--device cuda needs {missing}")
    try:
        args.rows = select(args)
    except ValueError as error:
        parser.error(str(error))
    if args.plot and not any(row.plotted for row in args.rows):
        parser.error("--plot needs a 'cost against size' row among those selected")
    for path in filter(None, (args.json, args.plot)):
        if not path.absolute().parent.is_dir():
            parser.error(f"{path.absolute().parent} is not a directory")
    return args


def _size(text: str) -> tuple[str, int | bool | tuple]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(
            f"must be NAME=VALUE, the value a number, a flag or a tuple, got {text!r}"
        ) from None


def select(args: argparse.Namespace) -> list[Row]:
    """The rows that are asked for, of the sizes that are asked for."""
    wanted = args.op or subjects(args.group)
    of_groups = [(group, name) for group in GROUPS for name in subjects(group) if name in wanted]
    rows = [row for group, name in of_groups for row in rows_of(group, name)]
    rows = [row for row in rows if row.device == args.device]
    if not rows:
        raise ValueError(f"--op {' '.join(wanted)} has no row for --device {args.device}")
    for name, _ in args.sizes:
        if not any(name in row.full for row in rows):
            raise ValueError(f"--set {name}: no row that is selected has a size of this name")
    rows = [row.with_sizes(dict(args.sizes)) for row in rows]
    found = [row for row in rows if not args.row or args.row in row.name(args.smoke)]
    if not found:
        raise ValueError(f"--row {args.row!r} matches no row")
    return found


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.show:
        print(table(*read(args.show)))
        return 0
    machine, results = describe(args.device), []
    for number, row in enumerate(args.rows, start=1):
        print(f"[{number}/{len(args.rows)}] {row.op}: {row.name(args.smoke)}", file=sys.stderr)
        try:
            results += row.run(args.repeats, args.smoke)
        except ResultsDifferError as error:
            print(f"results differ, nothing to compare: {error}", file=sys.stderr)
            return 1
        if args.json:
            content = {"machine": machine, "results": [result.to_dict() for result in results]}
            write(args.json, content)
    print(table(machine, results))
    if args.plot:
        plot(results, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

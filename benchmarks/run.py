"""``python -m benchmarks.run``: every operation against its peers, in one table."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import cuda
from benchmarks.machine import describe
from benchmarks.registry import SUBJECTS, ResultsDifferError, Row, all_rows
from benchmarks.report import plot, table


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--op", action="append", choices=SUBJECTS, help="only this one")
    parser.add_argument("--row", metavar="TEXT", help="only rows whose name holds this text")
    parser.add_argument("--repeats", type=_positive, default=15, help="rounds per row (15)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where ours runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot cost against size here")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, seconds, not judged")
    args = parser.parse_args(argv)
    if args.device == "cuda" and (missing := cuda.missing()):
        parser.error(f"--device cuda needs {missing}")
    rows = [row for row in all_rows() if row.device == args.device]
    args.rows = select(rows, args.op, args.row, args.smoke)
    if not args.rows and args.row:
        parser.error(f"--row {args.row!r} matches no row")
    if not args.rows:
        parser.error(f"--op {' '.join(args.op)} has no row for --device {args.device}")
    if args.plot and not any(row.plotted for row in args.rows):
        parser.error("--plot needs a 'cost against size' row among those selected")
    for path in filter(None, (args.json, args.plot)):
        if not path.absolute().parent.is_dir():
            parser.error(f"{path.absolute().parent} is not a directory")
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def select(rows: list[Row], ops: list[str] | None, text: str | None, smoke: bool) -> list[Row]:
    return [
        row for row in rows if (not ops or row.op in ops) and (not text or text in row.name(smoke))
    ]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = describe(args.device)
    results = []
    for number, row in enumerate(args.rows, start=1):
        print(f"[{number}/{len(args.rows)}] {row.op}: {row.name(args.smoke)}", file=sys.stderr)
        try:
            results += row.run(args.repeats, args.smoke)
        except ResultsDifferError as error:
            print(f"results differ, nothing to compare: {error}", file=sys.stderr)
            return 1
    print(table(machine, results))
    if args.json:
        content = {"machine": machine, "results": [result.to_dict() for result in results]}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.plot:
        plot(results, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

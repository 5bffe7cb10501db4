"""Turn a training run's log into figures and a page: progress, best values, what looks wrong and what to try."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder, its metrics.jsonl, or a text log of the original programs",
    )
    parser.add_argument("-o", "--output", help="folder of the report (default: RUN/report)")
    parser.add_argument("--overlay", action="store_true", help="one page with all runs over each other, not one each")
    parser.add_argument("--watch", action="store_true", help="follow a live run: update the report as the log grows")
    parser.add_argument(
        "--interval", type=float, default=30.0, metavar="S", help="seconds between looks (default: 30)"
    )
    parser.add_argument("--workers", type=int, default=2, help="reports made at the same time (default: 2)")


def run(args: argparse.Namespace) -> int:
    from ..reports import training

    if args.watch:
        if len(args.runs) > 1:
            raise ValueError("--watch follows one run: give one, or leave --watch out")
        if args.interval <= 0:
            raise ValueError(f"--interval must be above 0 seconds; got {args.interval:g}")
        try:
            for page in training.watch(args.runs[0], args.output, args.interval):
                print(f"{page} updated", flush=True)
        except KeyboardInterrupt:
            pass
        return 0
    if args.overlay:
        print(training.write_overlay(args.runs, args.output or "report_overlay")[1])
        return 0
    if len(args.runs) == 1:
        print(training.write_report(args.runs[0], args.output)[1])
        return 0
    results = training.write_reports(args.runs, args.output, args.workers)
    for path, result in results.items():
        if isinstance(result, str):
            print(f"{path}: {result}", file=sys.stderr)
        else:
            print(result)
    return 1 if any(isinstance(result, str) for result in results.values()) else 0

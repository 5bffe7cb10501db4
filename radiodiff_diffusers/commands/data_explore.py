"""Look into a data set: counts, what is missing or damaged, statistics and samples, as figures and one page."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="RadioMapSeer layout, ICASSP-2025 indoor, or pictures by class")
    parser.add_argument("-o", "--output", help="folder of the page (default: DIR/explore)")
    parser.add_argument(
        "--kind", choices=("radiomapseer", "icassp2025", "spectrograms"), help="kind of data set (default: found out)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="picks the samples shown (default: 0)")


def run(args: argparse.Namespace) -> int:
    from ..reports.explore import explore

    print(explore(args.folder, args.output, args.kind, args.workers, args.seed)[1])
    return 0

"""Arrange the ICASSP 2025 indoor set for training: square pictures round the transmitter, split by building."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the ICASSP 2025 set: Inputs/, Outputs/, Positions/ ...")
    parser.add_argument("-o", "--output", required=True, help="where to")
    parser.add_argument(
        "--layout",
        default="arranged",
        help="arranged (default): image/ and edge/, 256 pixels; or multi-condition: condition1/, condition2/, target/",
    )
    parser.add_argument("--task", type=int, default=1, help="1 (default), 2 or 3")
    parser.add_argument(
        "--split-by",
        default="building",
        metavar="WHAT",
        help="building (default): 20/2/3; or sample: 80/10/10 percent",
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side (default: 256 or 320 by layout)")
    parser.add_argument("--fit", default="crop", help="crop (default) keeps the scale; resize squeezes whole maps in")
    for what in ("frequencies", "antennas", "buildings"):
        parser.add_argument(f"--{what}", type=int, nargs="+", metavar="N", help="only these numbers (default: all)")
    parser.add_argument(
        "--hertz",
        nargs="+",
        action="extend",
        default=[],
        metavar="N=HZ",
        help="what a frequency number stands for, as 2=2.4e9 (default: 1=868e6 2=1.8e9 3=3.5e9)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    from tqdm import tqdm

    from ..data.icassp2025_arrange import Arrangement, arrange

    def progress(done, count):
        return tqdm(done, total=count, unit="sample", disable=None)

    arrangement = Arrangement(
        args.layout,
        args.task,
        args.split_by,
        args.size,
        args.fit,
        args.buildings,
        args.antennas,
        args.frequencies,
        hertz=dict(_band(text) for text in args.hertz),
    )
    counts = arrange(args.folder, args.output, arrangement, args.workers, progress)
    failed = counts.pop("failed")
    for line in failed:
        print(line, file=sys.stderr)
    print(json.dumps({"folder": args.output, **counts, "failed": len(failed)}))
    return 1 if failed else 0


def _band(text: str) -> tuple[str, str]:
    number, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--hertz takes NUMBER=HERTZ, such as 2=2.4e9; got {text!r}")
    return number, value

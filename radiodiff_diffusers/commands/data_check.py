"""Look at every file of a data set; name all that are missing, damaged or odd, and say what the set is made of."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help="RadioMapSeer, ICASSP 2025 (raw or arranged), Parquet, spectrograms"
    )
    parser.add_argument("--quick", action="store_true", help="look at names alone, open no pictures")
    parser.add_argument("--complete", action="store_true", help="RadioMapSeer: expect all 701 maps")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    import json

    from tqdm import tqdm

    from ..data.check import check

    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers must be at least 1; got {args.workers}")

    def progress(done, count):
        return tqdm(done, total=count, unit="file", disable=None)

    report = check(args.folder, quick=args.quick, complete=args.complete, workers=args.workers, progress=progress)
    if args.json:
        content = {"root": str(report.root), "kind": report.kind, "files": report.files}
        print(
            json.dumps(content | {"problems": report.problems, "notes": report.notes, "facts": report.facts}, indent=1)
        )
    else:
        print(report.text())
    return 1 if report.problems else 0

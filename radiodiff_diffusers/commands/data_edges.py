"""Make edge maps of a data set: folders kept, or image/edge pairs (split into train and val) for training."""

import argparse

METHODS = ("canny", "sobel", "laplacian", "prewitt", "gradient", "contour", "ridge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="images, in any folders below")
    parser.add_argument("-o", "--output", help="where edge maps go (default: DIR_edges)")
    parser.add_argument("--method", choices=METHODS, default="canny", help="detector (default: canny)")
    parser.add_argument("--low", type=float, help="lower threshold (default: the detector's; canny 50, contour 64)")
    parser.add_argument("--high", type=float, help="upper threshold (default: the detector's; canny 150, contour 128)")
    parser.add_argument("--blur", type=float, default=0.0, metavar="SIGMA", help="Gaussian blur before, in pixels")
    parser.add_argument("--size", type=int, help="bring images to this side first")
    parser.add_argument(
        "--layout", choices=("preserve", "pairs"), default="preserve",
        help="keep the folders, or write flat image/ and edge/ folders (default: preserve)",
    )  # fmt: skip
    parser.add_argument(
        "--split", metavar="SHARES", help="with pairs: shares of train,val[,test] by map, as 0.8,0.1,0.1"
    )
    parser.add_argument("--include", default="**/*", metavar="GLOB", help="which images, as gain/DPM/*.png")
    parser.add_argument(
        "--analyze-only", action="store_true", help="write a page with statistics and samples, no edge maps"
    )
    parser.add_argument("--overwrite", action="store_true", help="make maps again that are there already")
    parser.add_argument(
        "--retries", type=int, default=2, help="tries again before an image counts as failed (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the samples shown (default: 0)")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..data.edges import FAILURES, EdgeOptions, make_edges

    options = EdgeOptions(args.method, args.low, args.high, args.blur, args.size)
    folder = Path(args.folder)
    output = Path(args.output) if args.output else folder.with_name(f"{folder.resolve().name}_edges")
    if args.analyze_only:
        from ..reports.edges import analyze_edges

        print(analyze_edges(folder, output, options, args.include, workers=args.workers, seed=args.seed)[1])
        return 0
    result = make_edges(
        folder, output, options, args.layout, _shares(args.split), args.include, args.workers, args.retries, args.seed,
        args.overwrite,
    )  # fmt: skip
    print(f"{result.written:,} edge maps written to {output}, {result.skipped:,} were there already")
    if result.failures:
        image, reason = result.failures[0]
        print(f"{len(result.failures):,} images failed, listed in {output / FAILURES}; the first: {image}: {reason}")
    return 1 if result.failures and not result.written and not result.skipped else 0


def _shares(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise ValueError(f"--split must be shares as 0.8,0.1,0.1; got {text!r}") from None

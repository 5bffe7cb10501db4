"""Compare two folders of maps pair by pair: scores, CSV, the best and worst pairs, where errors lie, as one page.

radiodiff compare predictions/ truth/
radiodiff compare dominant_path maps/ --limit 50       (an engine, or a model's folder, against a data set)
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "predictions", metavar="A", help="folder of predicted maps, a model, or an engine (dominant_path ...)"
    )
    parser.add_argument(
        "truths", metavar="B", help="folder of true maps; for a predictor a data set like RadioMapSeer"
    )
    parser.add_argument("-o", "--output", default="comparison", help="folder of the page (default: comparison)")
    parser.add_argument(
        "--protocol", choices=("raw", "thr0.2"), default="raw", help="plane that is scored (default: raw)"
    )
    parser.add_argument(
        "--scale", choices=("radiomapseer", "indoor"), default="radiomapseer", help="what gray levels mean"
    )
    parser.add_argument("--metres-per-pixel", type=float, default=1.0, help="for distances (default: 1)")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    group = parser.add_argument_group("with a predictor")
    group.add_argument("--simulation", default="DPM", help="which maps of the data set are the truth (default: DPM)")
    group.add_argument(
        "--split", default="all", choices=("all", "train", "val", "test"), help="part of it (default: all)"
    )
    group.add_argument("--limit", type=int, help="at most so many maps, spread over the set")
    group.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--layout", choices=("png", "polygon"), help="buildings from masks or outlines (default: outlines for engines)"
    )


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..hub_names import could_be_on_the_hub
    from ..reports.compare import compare, compare_predictor, is_predictor

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1; got {args.limit}")
    if is_predictor(args.predictions) or not Path(args.predictions).exists():
        if not is_predictor(args.predictions) and not could_be_on_the_hub(args.predictions):
            raise ValueError(f"{args.predictions}: no such folder, and neither an engine nor a model")
        result = compare_predictor(
            args.predictions,
            args.truths,
            args.output,
            protocol=args.protocol,
            simulation=args.simulation,
            split=args.split,
            limit=args.limit,
            steps=args.steps,
            seed=args.seed,
            layout=args.layout,
        )
    else:
        result = compare(
            args.predictions, args.truths, args.output, args.protocol, args.scale, args.metres_per_pixel, args.workers
        )
    for name in ("nmse", "rmse", "rmse_db", "mae_db", "ssim", "psnr", "brightest_distance_m", "sharpness_ratio"):
        values = result.summary[name]
        print(f"{name:22}{values['mean']:10.4f}   median {values['median']:.4f}")
    unpaired = len(result.unpaired_predictions) + len(result.unpaired_truths)
    print(f"{len(result.rows):,} pairs, {unpaired:,} unpaired files, {len(result.failures):,} failures: {result.page}")
    return 0

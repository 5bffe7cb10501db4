"""Score predictors of radio maps, tokenizers, or generated images.

radiodiff evaluate maps RadioMapSeer --split test --count 50 -p kriging dominant_path default@1,5 -o table.md
radiodiff evaluate tokenizer FOLDER IMAGES
radiodiff evaluate generated IMAGES --real FOLDER
"""

from __future__ import annotations

import argparse

IMAGES = {
    "tokenizer": "how well a tokenizer rebuilds images",
    "generated": "generated spectrograms against real ones",
}
PREDICTORS = """\
predictors:
  free_space, log_distance, nearest, idw, rbf, kriging, trend_kriging, reflected_rays
  dominant_path[:NAME=NUMBER,...], ray_tracing[:...]   engines, with other constants
  default[+ADAPTER][@STEPS,...]                        the model in the package
  model:FOLDER[+ADAPTER][@STEPS,...]                   a RadioDiff folder or Hub id, with a LoRA adapter
  unet:FOLDER                                          a plain U-Net regression
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="maps | tokenizer | generated")
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    _maps_arguments(what.add_parser("maps", help="predictors of radio maps", epilog=PREDICTORS, **form))
    # these two say themselves what they take, and importing them is slow: only when they are called
    for name, text in IMAGES.items():
        unread = what.add_parser(name, help=text, add_help=False, prefix_chars="\0")  # to which nothing is an option
        unread.add_argument("words", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace) -> int:
    return _maps(args) if args.what == "maps" else _images(args.what, args.words)


def _images(name: str, words: list[str]) -> int:
    from importlib import import_module

    module = import_module(f"..evaluation.{name}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"radiodiff evaluate {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(words))


# Maps --------------------------------------------------------------------------------------------------------------


def _maps_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder in RadioMapSeer's layout (simulated ones are), or a Hub data set")
    parser.add_argument(
        "--predictor", "-p", nargs="+", required=True, metavar="NAME", help="what to compare, see below"
    )
    parser.add_argument("-o", "--output", help="Markdown file; CSV and pictures go beside it")
    parser.add_argument("--split", default="all", help="train, val, test or all (default)")
    parser.add_argument("--simulation", help="DPM (default), IRT2, IRT4, carsDPM ...")
    parser.add_argument(
        "--layout", choices=["png", "polygon"], help="read the building mask (default) or the outlines"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="more arguments of the data set (missing=2, ...)",
    )
    parser.add_argument("--count", type=int, help="so many maps, drawn at random (default: all)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the maps drawn, the places measured, and the models' noise"
    )
    parser.add_argument("--measurements", type=int, default=100, metavar="K", help="known pixels a map (default: 100)")
    parser.add_argument("--places", default="random", help="where they lie: random (default), edges or vertices")
    parser.add_argument(
        "--num-maps", type=int, default=1, help="samples a scene of diffusion models; several give a spread"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="scenes handed over at once (default: 1)")
    parser.add_argument("--worst", type=int, default=3, help="pictures of so many worst maps a predictor (default: 3)")
    parser.add_argument("--device", help="of networks: cpu, cuda, ...; a GPU where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _maps(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..evaluation.benchmark import TestSet, markdown, run_benchmark, write_tables
    from ..evaluation.predictors import make_predictors
    from . import choose_device

    if args.output and Path(args.output).suffix.lower() != ".md":
        raise ValueError(f"-o takes a Markdown file, as in table.md; got {args.output!r}")
    if args.num_maps < 1:
        raise ValueError(f"--num-maps must be at least 1; got {args.num_maps}")
    device = args.device and choose_device(args.device)  # one that was named is checked before the work
    networks = {"num_maps": args.num_maps, "seed": args.seed, "device": device, "dtype": args.dtype}
    predictors = [one for spec in args.predictor for one in make_predictors(spec, **networks)]
    options = {name: getattr(args, name) for name in ("simulation", "layout") if getattr(args, name)}
    data = TestSet(
        args.data, args.split, count=args.count, seed=args.seed, measurements=args.measurements, places=args.places,
        **options, **_options(args.option),
    )  # fmt: skip
    worst = args.worst if args.output else 0
    benchmark = run_benchmark(data, predictors, batch_size=args.batch_size, worst=worst, progress=not args.quiet)
    if args.num_maps > 1:
        benchmark.about.append(f"{args.num_maps} samples a map from diffusion models; their mean is scored")
    print(markdown(benchmark))
    if args.output:
        table, *rest = write_tables(benchmark, args.output)
        print(f"wrote {table} and beside it {', '.join(str(p.relative_to(table.parent)) for p in rest)}")
    return 0


def _options(given: list[str]) -> dict[str, object]:
    """`name=value` words, the values read as YAML does: numbers, true, lists, words."""
    import yaml

    options = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"--option takes NAME=VALUE; got {word!r}")
        options[name] = yaml.safe_load(value)
    return options

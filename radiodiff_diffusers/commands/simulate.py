"""Make radio maps in quantity: cities x transmitters x a physics engine, as a folder in RadioMapSeer's layout."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write; a stopped simulation goes on when its folder is named again")
    parser.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        default=["made-up"],
        metavar="LAYOUT",
        help="made-up (default), munich, etoile, san_francisco, florence (the test city), or files",
    )
    parser.add_argument("--cities", type=int, metavar="N", help="how many (default: 10 made-up ones, or all tiles)")
    parser.add_argument("--transmitters", type=int, default=80, metavar="N", help="radio maps a city (default: 80)")
    parser.add_argument(
        "--engine",
        default="dominant_path",
        help="dominant_path (default), reflected_rays, ray_tracing (needs sionna-rt) or free_space",
    )
    parser.add_argument(
        "--engine-option", action="append", default=[], metavar="NAME=NUMBER", help="a constant of the engine"
    )
    parser.add_argument("--style", help="of made-up cities: apartments, old_town, mixed ... (default: all)")
    parser.add_argument("--stride", type=int, metavar="PIXELS", help="between the tiles of a town (default: half)")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="side of a map (default: 256)")
    parser.add_argument("--metres-per-pixel", type=float, default=1.0, metavar="M", help="default: 1")
    parser.add_argument("--frequency", type=float, default=5.9e9, metavar="HZ", help="default: 5.9e9")
    parser.add_argument(
        "--area", type=float, default=150.0, metavar="M", help="transmitters stand in the middle square of this side"
    )
    parser.add_argument("--cars", type=int, default=0, metavar="N", help="parked cars a city; adds maps with them")
    parser.add_argument(
        "--raster",
        default="radiomapseer",
        help="radiomapseer (default): masks half a pixel off the gain, as in the real set; or exact",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from ..data.simulate import simulate

    summary = simulate(
        args.folder,
        workers=args.workers,
        progress=not args.quiet,
        sources=args.sources,
        cities=args.cities,
        transmitters=args.transmitters,
        engine=args.engine,
        engine_options=dict(_number(option) for option in args.engine_option),
        style=args.style,
        stride=args.stride,
        size=args.size,
        metres_per_pixel=args.metres_per_pixel,
        frequency_hz=args.frequency,
        area=args.area,
        cars=args.cars,
        raster=args.raster,
        seed=args.seed,
    )
    print(json.dumps({"folder": args.folder, **summary, "seconds": round(summary["seconds"], 1)}))
    return 0


def _number(option: str) -> tuple[str, float]:
    name, _, value = option.partition("=")
    try:
        return name, int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise ValueError(f"--engine-option takes NAME=NUMBER, such as corner_loss=3; got {option!r}") from None

"""Write a data set as Parquet shards with a card, to read, stream or push to the Hub; or in RadioMapSeer's layout."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATA", help="a folder of any kind that is known, or a name on the Hub")
    parser.add_argument("-o", "--output", required=True, help="where to; a new folder")
    parser.add_argument(
        "--format", choices=("parquet", "radiomapseer", "users"), default="parquet",
        help="parquet (default); radiomapseer: its folders; users: a folder of spectrograms a user, of Parquet",
    )  # fmt: skip
    parser.add_argument(
        "--splits",
        help="which, with commas between (default: those of train,val,test that are there); all: one, called train",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the data set, as simulation=IRT2 or task=3",
    )
    parser.add_argument("--rows", type=int, default=2000, metavar="N", help="maps a shard (default: 2000)")
    parser.add_argument("--title", help="of the card")
    parser.add_argument("--description", default="", help="of the card")
    parser.add_argument("--licence", help="of the card, as cc-by-4.0")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hub afterwards (private)")


def run(args: argparse.Namespace) -> int:
    import json

    import yaml
    from tqdm import tqdm

    from ..data.hub import push_to_hub, write_parquet

    if args.rows < 1:
        raise ValueError(f"--rows must be at least 1; got {args.rows}")
    if args.push and args.format != "parquet":
        raise ValueError("--push goes with --format parquet")
    wrong = [option for option in args.option if "=" not in option]
    if wrong:
        raise ValueError(f"--option takes NAME=VALUE, such as simulation=IRT2; got {wrong[0]!r}")
    options = {name: yaml.safe_load(value) for name, _, value in (option.partition("=") for option in args.option)}

    def bar(items, count):
        return tqdm(items, total=count, unit="map", disable=None)

    if args.format == "users":
        from ..data.hub_users import export_users

        print(json.dumps({"folder": str(export_users(args.source, args.output, bar))}))
        return 0
    splits = _open_splits(args.source, args.splits, options)
    count = sum(len(data) for data in splits.values())
    if args.format == "radiomapseer":
        from ..data.export import export_radiomapseer

        if any(hasattr(data, "users") for data in splits.values()):
            raise ValueError(f"{args.source} holds spectrograms: --format radiomapseer is for radio maps")
        pairs = (data[k] for data in splits.values() for k in range(len(data)))
        simulation = str(options.get("simulation", "DPM"))
        if simulation == "rand":  # a mixture; the readers know its parts alone
            raise ValueError("--format radiomapseer has no folder for simulation=rand: export DPM or IRT2, or Parquet")
        simulation = f"cars{simulation}" if options.get("cars_in_map") else simulation
        print(json.dumps(export_radiomapseer(bar(pairs, count), args.output, simulation)))
        return 0
    folder = write_parquet(
        splits,
        args.output,
        rows_per_shard=args.rows,
        title=args.title,
        description=args.description,
        licence=args.licence,
        progress=bar,
    )
    print(json.dumps({"folder": str(folder), **{name: len(data) for name, data in splits.items()}}))
    if args.push:
        print(push_to_hub(folder, args.push))
    return 0


def _open_splits(source: str, names: str | None, options: dict) -> dict:
    """The splits that were named; or those of the usual three that have samples, saying which have none."""
    import sys

    from ..data.hub import open_dataset

    if names is not None:
        splits = {name: open_dataset(source, name, **options) for name in names.split(",")}
        return {"train": splits["all"]} if list(splits) == ["all"] else splits  # no split that is read is called all
    open_dataset(source, "all", **options)  # what is wrong with the whole is no matter of splits
    splits = {}
    for name in ("train", "val", "test"):
        try:
            splits[name] = open_dataset(source, name, **options)
        except ValueError as error:
            print(f"split {name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return splits

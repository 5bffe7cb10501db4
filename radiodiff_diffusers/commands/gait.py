"""Simulate micro-Doppler spectrograms of walking people: a folder of images for each user."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write; a stopped simulation goes on when its folder is named again")
    parser.add_argument("--users", type=int, default=31, metavar="N", help="people with habits of their own (31)")
    parser.add_argument("--images", type=int, default=150, metavar="N", help="images a user (default: 150)")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=["Normal_line"],
        metavar="NAME",
        help="taken in turn: Normal, Bag, Backpack or Bag_Phone, with _line or _free; or all (default: Normal_line)",
    )
    parser.add_argument("--radar", default="24GHz", help="24GHz (default) or 77GHz")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="side of an image (default: 256)")
    parser.add_argument("--gray", action="store_true", help="power in dB as gray levels, not in jet colours")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other people (default: 0)")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one for each core")


def run(args: argparse.Namespace) -> int:
    from ..data.micro_doppler import simulate_users
    from ..engines.gait import CONDITIONS

    if args.users < 1 or args.images < 1:
        raise ValueError(f"--users {args.users} and --images {args.images}: expected at least 1 of each")
    conditions = CONDITIONS if args.conditions == ["all"] else tuple(args.conditions)
    simulate_users(
        args.folder,
        users=args.users,
        images_per_user=args.images,
        conditions=conditions,
        radar=args.radar,
        seed=args.seed,
        size=args.size,
        colour=not args.gray,
        processes=args.processes,
    )
    print(f"{args.users} users with {args.images} images each in {args.folder}")
    return 0

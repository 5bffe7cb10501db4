"""What a model is made of: modules, shapes, parameters, FLOPs and memory of one prediction; --html writes a page."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        help="folder or Hub id of a pipeline or model, or a preset (base, small, tiny); default: the package's",
    )
    parser.add_argument(
        "--size", default="256", metavar="N or WxH", help="pixels of the map that is predicted (default: 256)"
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    parser.add_argument("--depth", type=int, default=2, help="levels of the module tree that are printed (default: 2)")
    parser.add_argument("--html", metavar="FILE", help="write the page with diagrams here")


def run(args: argparse.Namespace) -> int:
    width, height = _size(args.size)
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps must be at least 1; got {args.steps}")
    from ..reports.architecture import inspect_model, load_model, print_info

    info = inspect_model(load_model(args.model), height, width, args.steps, args.model or "")
    page = None
    if args.html:  # before anything is printed: `radiodiff info --html page | head` writes it too
        from ..reports.architecture_page import write_page

        page = write_page(info, args.html)
    print(print_info(info, args.depth))
    if page:
        print(f"\n{page}")
    return 0


def _size(text: str) -> tuple[int, int]:
    try:
        numbers = [int(number) for number in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"--size is a number of pixels as 256, or width x height as 320x240; got {text!r}")
    return numbers[0], numbers[-1]

"""Work on data sets: `radiodiff data check DIR`, `arrange`, `explore`, `edges`, `export`; each has its own --help."""

import argparse
from importlib import import_module
from importlib.util import find_spec

# Each is a module data_NAME here, with a docstring, add_arguments(parser) and run(args).
ACTIONS = ("check", "arrange", "explore", "edges", "export")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name in ACTIONS:
        module = f"{__package__}.data_{name}"
        if find_spec(module) is None:
            continue
        action = import_module(module)
        first_line = (action.__doc__ or "").strip().splitlines()[0]
        action.add_arguments(
            actions.add_parser(
                name,
                help=first_line,
                description=action.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )


def run(args: argparse.Namespace) -> int:
    return import_module(f"{__package__}.data_{args.action}").run(args)

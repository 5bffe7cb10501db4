"""The command line: `radiodiff COMMAND ...`. Each command is a module of `radiodiff_diffusers.commands`.

A command module has `add_arguments(parser)` and `run(args) -> int`, and imports what is heavy inside `run`, so that
help answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from importlib import import_module

COMMANDS = {
    "predict": "predict the radio map of a building picture",
    "simulate": "make training data: many cities x many transmitters x a physics engine",
    "data": "check, arrange, explore and export data sets; edge maps of them",
    "convert": "turn the original RadioDiff's checkpoints into a pipeline folder, and back",
    "gait": "make training data: micro-Doppler spectrograms of walking people",
    "train": "start a training recipe (examples/) through accelerate",
    "latents": "extract a tokenizer's latents of an image set",
    "evaluate": "score predictors of maps, tokenizers, or generated images",
    "compare": "compare two folders of maps pair by pair",
    "report": "pictures and a summary of a training run",
    "info": "what a model is made of: modules, parameters, FLOPs, memory",
    "demo": "a web page to click transmitters into a city",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="radiodiff",
        description="Radio maps by diffusion.",
        epilog="commands:\n" + "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
        + "\n\n`radiodiff COMMAND --help` tells more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument(
        "command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help="one of the commands below"
    )
    # only the words up to the command are ours; the rest belongs to the command
    split = next((i + 1 for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    args = parser.parse_args(argv[:split])
    if args.version:
        from . import __version__

        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    return run_command(args.command, argv[split:])


def run_command(name: str, argv: list[str]) -> int:
    """One command; a wrong input ends in one line on standard error and exit code 2, Ctrl-C in 130."""
    command = import_module(f".commands.{name}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"radiodiff {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger(__package__).setLevel(logging.INFO)
    try:
        return command.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        sys.stderr.close()
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"radiodiff {name}: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        everything = "pip install 'radiodiff_diffusers[train,simulate,demo]'"
        return f"the package {error.name!r} is not installed; {everything} has all that any command needs"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())

"""Train a model by one of the recipes of a clone: vae_gan, ldm, lora, va_vae, lightningdit.

    radiodiff train ldm --config radio_train_tiny.yaml --max_steps 100

starts examples/ldm/train.py through accelerate. --config takes a file, or the name of one beside the recipe;
--num-processes N and --cpu go to accelerate, all else to the recipe (`radiodiff train ldm --help` lists its keys).
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="folder below examples/")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="--config FILE, and any key of its configuration")


def run(args: argparse.Namespace) -> int:
    return launch(make_command(args.recipe, args.arguments))


def make_command(recipe: str, arguments: list[str]) -> list[str]:
    """The accelerate command that starts the recipe."""
    from pathlib import Path

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--cpu", action="store_true")
    ours, others = parser.parse_known_args(arguments)
    script = find_recipe(recipe)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    if ours.cpu:
        command.append("--cpu")
    if ours.num_processes:
        command += ["--num_processes", str(ours.num_processes)]
    # the recipe has said in one line what is wrong: no traceback of the launcher's own below it
    command += ["--quiet", str(script)]
    if ours.config:
        beside = script.parent / ours.config
        config = beside if not Path(ours.config).exists() and beside.exists() else Path(ours.config)
        command += ["--config", str(config)]
    return [*command, *others]


def find_recipe(name: str):
    """The recipe's script in this clone."""
    from pathlib import Path

    import radiodiff_diffusers

    examples = Path(radiodiff_diffusers.__file__).resolve().parent.parent / "examples"
    # a recipe has a README beside it; the script that made the model in the package is no recipe for other data
    recipes = sorted(p.parent.name for p in examples.glob("*/train.py") if (p.parent / "README.md").exists())
    if not recipes:
        raise ValueError(
            "the training recipes are not part of the installed package: clone the repository, pip install -e . "
            "there, and run it from the clone (examples/*/train.py)"
        )
    if name not in recipes:
        raise ValueError(f"there is no recipe {name!r}; there are: {', '.join(recipes)}")
    return examples / name / "train.py"


def launch(command: list[str]) -> int:
    """Run the command in a process group of its own and hand on signals, so that the run saves itself before it
    leaves."""
    import os
    import signal
    import subprocess
    import time

    process = subprocess.Popen(command, start_new_session=True)

    def hand_on(number, _frame) -> None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    code = process.wait()
    # accelerate's launcher does not wait for the training it started when a signal ends it: we do
    while _is_alive(process.pid):
        time.sleep(0.2)
    return code if code >= 0 else 128 - code


def _is_alive(group: int) -> bool:
    import os

    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True

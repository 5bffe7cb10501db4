"""Configurations: dataclasses filled from a YAML file and the command line.

A recipe's configuration is a dataclass whose fields are dataclasses, one a section. The file holds the same sections:

    train:
      max_steps: 50000
      learning_rate: 5e-5

and the command line has every key as `--train.max_steps 100`, or `--max_steps 100` where no other section has a key
of that name. `extends: other.yaml` in a file starts from another file beside it. A key nobody knows stops with the
nearest one known.
"""

from __future__ import annotations

import argparse
import difflib
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

Config = TypeVar("Config")


def option(default: Any, help: str) -> Any:
    """A field with its explanation, which `--help` shows."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class DataConfig:
    source: str = option(
        "simulated", "name of a data set (simulated, radiomapseer, icassp2025, ...), a folder or a Hub id"
    )
    options: dict = option({}, "what open_dataset takes for it, such as root, simulation or cars")
    validation_options: dict = option({}, "what is different for validation")
    simulate: dict = option({}, "make the folder `source` first by radiodiff simulate with these parameters")
    derive: list[str] = option([], "make another task of the data: edges, k2, missing_buildings")
    train_split: str = option("train", "split to train on")
    validation_split: str = option("val", "split to validate on")
    image_channels: list[str] = option(["map"], "planes to learn: map, or a condition channel's name")
    condition_channels: list[str] = option([], "planes to condition on, by name")
    limit: int | None = option(None, "use only the first so many samples")
    streaming: bool = option(False, "read samples in order as they come, without an index")
    crop: int | None = option(None, "side of random square crops in pixels; validation takes the middle")
    crop_keeps_transmitter: bool = option(
        False, "crops hold the transmitter; else it may lie outside, and stays known"
    )
    transmitter_margin: int = option(0, "pixels between a kept transmitter and the crop's edge")
    symmetries: bool = option(False, "augment with the eight symmetries of the square (four for oblong maps)")
    horizontal_flip: bool = option(False, "augment with mirror images only")
    workers: int = option(2, "processes that load data; 0 loads in the training process")


@dataclass
class TrainConfig:
    output_dir: str = option("runs/run", "where checkpoints, logs and the trained model go")
    seed: int = option(0, "decides initial weights, order of the data, augmentation and noise")
    max_steps: int = option(1000, "optimiser steps")
    batch_size: int = option(2, "samples in each process at a time")
    gradient_accumulation_steps: int = option(1, "batches whose gradients are added before a step")
    learning_rate: float = option(1e-4, "at the start, or after the warm-up")
    lr_schedule: str = option("constant", "polynomial_floor, cosine_floor or a name of diffusers' get_scheduler")
    lr_floor: float = option(0.0, "smallest learning rate of the schedules with a floor")
    lr_power: float = option(1.0, "power of the polynomial schedules")
    lr_warmup_steps: int = option(0, "steps of linear rise")
    weight_decay: float = option(1e-4, "of AdamW")
    adam_betas: list[float] = option([0.9, 0.999], "of AdamW")
    max_grad_norm: float | None = option(1.0, "clip gradients to this norm before the step")
    mixed_precision: str = option("no", "no, bf16 or fp16")
    half_gradients: bool = option(
        False, "with bf16, keep gradients in bfloat16, too: 2 bytes a weight less, no accumulation"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    batch_norm_eval: bool = option(
        False, "keep batch norm on its running statistics, as comparing process counts needs"
    )
    compile: bool = option(False, "torch.compile the trained model")
    log_steps: int = option(10, "steps between two lines of the log")
    trackers: list[str] = option(["tensorboard"], "accelerate trackers by name")
    checkpoint_steps: int = option(500, "steps between two checkpoints")
    keep_checkpoints: int = option(2, "how many of the last checkpoints to keep, besides the best and the milestones")
    milestone_every: int = option(0, "keep every so many-th checkpoint for ever; 0 for none")
    resume: str | None = option(None, "go on with this run: latest, a step, or a checkpoint's folder")
    init_from: str | None = option(None, "a new run starts from the weights in this folder, Hub id or checkpoint")
    allow_config_change: bool = option(False, "resume although the configuration is not the checkpoint's")


@dataclass
class EMAConfig:
    decay: float = option(0.999, "of the moving average of the weights; 0 turns it off")
    start: int = option(0, "steps before averaging begins; until then the average is the weights themselves")
    interval: int = option(1, "steps between two updates")
    warmup: bool = option(True, "raise the decay slowly as 1 - (1 + step)^(-2/3), as the original does")


@dataclass
class GuardConfig:
    bad_in_a_row: int = option(5, "bad batches or steps in a row before the run rolls back")
    max_rollbacks: int = option(3, "rollbacks before the run gives up")
    lr_factor: float = option(0.5, "the learning rate is multiplied by this at each rollback")
    weight_check_steps: int = option(
        50, "steps between two looks at all weights; they are also checked at checkpoints"
    )


@dataclass
class ValidationConfig:
    steps: int | str = option(500, "steps between two validations, or as text: 5 epochs; 0 for none")
    scenes: int = option(8, "how many validation scenes, always the same")
    batch_size: int = option(4, "scenes predicted at a time")
    inference_steps: int = option(5, "sampling steps of a diffusion model")
    protocol: str = option("raw", "raw or thr0.2: see the metrics")
    pictures: int = option(4, "rows of the picture grid")


@dataclass
class HubConfig:
    push: bool = option(False, "upload the finished model")
    model_id: str | None = option(
        None, "repository on the Hub, such as me/my-radio-maps; the folder's name if not given"
    )
    private: bool = option(False, "make the repository private")
    license: str = option("mit", "licence in the model card")


def parse_config(cls: type[Config], argv: list[str] | None = None, description: str | None = None) -> Config:
    """The recipe's configuration from `--config file.yaml` and the other arguments; the command line wins."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file to start from")
    parser.add_argument("--push_to_hub", action="store_true", help="short for --hub.push true")
    names = _argument_names(cls)
    for dotted, (flags, spec) in names.items():
        default = "" if spec["default"] is None else f" (default: {spec['default']})"
        parser.add_argument(*flags, dest=dotted, metavar="VALUE", help=spec["help"].replace("%", "%%") + default)
    arguments, unknown = parser.parse_known_args(argv)
    values = read_yaml(arguments.config) if arguments.config else {}
    given = {k: v for k, v in vars(arguments).items() if v is not None and k not in ("config", "push_to_hub")}
    given |= _dictionary_entries(unknown, cls, names)
    if arguments.push_to_hub:
        given["hub.push"] = "true"
    if _names_other_data(given, values):
        values["data"].pop("simulate", None)  # it makes the folder that the file names, and no other
    for dotted, text in given.items():
        _set_dotted(values, dotted, yaml.safe_load(text))
    return build_config(cls, values, where=arguments.config or "the command line")


def build_config(
    cls: type[Config], values: dict, where: str = "the configuration", path: str = "", base: Config | None = None
) -> Config:
    """Fill a dataclass from a nested dictionary; unknown keys and wrong types stop with one line."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {path + str(key)!r}{_nearest(path + str(key), _all_keys(cls, path))}"
            )
    filled = {}
    defaults = base or cls()
    for name, value in values.items():
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {path + name} is a section with keys of its own; got {value!r}")
            # on top of the recipe's own defaults for this section
            filled[name] = build_config(hints[name], value, where, f"{path}{name}.", getattr(defaults, name))
        else:
            filled[name] = _coerce(value, hints[name], f"{where}: {path + name}")
    return replace(defaults, **filled)


def read_yaml(path: str | Path) -> dict:
    """A YAML file's dictionary, on top of the one it `extends`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such configuration file")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections with keys; got {type(values).__name__}")
    parent = values.pop("extends", None)
    return _merge(read_yaml(path.parent / parent), values) if parent else values


def write_yaml(config: Any, path: str | Path) -> None:
    Path(path).write_text(yaml.safe_dump(asdict(config), sort_keys=False))


# Details
# ----------------------------------------------------------------------------------------------------------------


def _argument_names(cls: type) -> dict[str, tuple[list[str], dict]]:
    """Dotted key -> its flags (also the short one where it is the only one of its name) and its explanation."""
    specs, defaults = {}, cls()
    for section in fields(cls):
        value = getattr(defaults, section.name)
        if is_dataclass(value):
            for f in fields(value):
                specs[f"{section.name}.{f.name}"] = {"help": f.metadata["help"], "default": getattr(value, f.name)}
        else:
            specs[section.name] = {"help": section.metadata.get("help", ""), "default": value}
    leaves = [dotted.rpartition(".")[2] for dotted in specs]
    flags = {}
    for dotted, spec in specs.items():
        leaf = dotted.rpartition(".")[2]
        mine = leaves.count(leaf) == 1 or dotted == f"train.{leaf}"
        short = [f"--{leaf}"] if mine and leaf != dotted else []
        if dotted == "data.source":
            short.append("--dataset")
        flags[dotted] = ([f"--{dotted}", *short], spec)
    return flags


def _names_other_data(given: dict[str, str], values: dict) -> bool:
    """Whether the command line names another data set than the file and does not say how to simulate it."""
    data = values.get("data")
    if "data.source" not in given or not isinstance(data, dict):
        return False
    return given["data.source"] != data.get("source") and not any(key.startswith("data.simulate") for key in given)


def _dictionary_entries(unknown: list[str], cls: type, names: dict) -> dict[str, str]:
    """`--data.options.simulation IRT4`: entries of a dictionary have no flag of their own. Anything else is a
    mistake."""
    entries, rest = {}, list(unknown)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        parent = name.rpartition(".")[0]
        if not flag.startswith("--") or parent not in names or not isinstance(names[parent][1]["default"], dict):
            raise ValueError(f"unknown argument {flag!r}{_nearest(name, _all_keys(cls))}")
        if not equals:
            if not rest:
                raise ValueError(f"{flag} needs a value")
            value = rest.pop(0)
        entries[name] = value
    return entries


def _all_keys(cls: type, path: str = "") -> list[str]:
    keys = []
    for f in fields(cls):
        hint = typing.get_type_hints(cls)[f.name]
        keys.append(path + f.name)
        if is_dataclass(hint):
            keys += _all_keys(hint, f"{path}{f.name}.")
    return keys


def _nearest(key: str, known: list[str]) -> str:
    leaf = key.rpartition(".")[2]
    leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
    close = difflib.get_close_matches(key, known, 1, 0.7) or [
        leaves[m] for m in difflib.get_close_matches(leaf, list(leaves), 1, 0.5)
    ]
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _set_dotted(values: dict, dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


def _merge(base: dict, over: dict) -> dict:
    """Section by section, key by key; a value that is itself a dictionary (such as data.options) is replaced as a
    whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    return merged


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """YAML's value as the field's type; YAML reads 1e-4 as text, so numbers are also taken from text."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        if value is None and type(None) in typing.get_args(hint):
            return None
        for one in options:
            try:
                return _coerce(value, one, where)
            except ValueError:
                pass
        raise ValueError(f"{where} is {value!r}; expected {_describe(hint)}")
    if origin is list:
        value = value.split(",") if isinstance(value, str) else [] if value is None else value
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} is {value!r}; expected a list")
        (inner,) = typing.get_args(hint) or (Any,)
        return [_coerce(v, inner, f"{where}[{i}]") for i, v in enumerate(value)]
    if hint is dict or origin is dict:
        inner = typing.get_args(hint)[1] if typing.get_args(hint) else Any
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}; expected keys and values")
        return {str(k): _coerce(v, inner, f"{where}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    try:
        if hint is bool and isinstance(value, bool):
            return value
        if hint is int and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
        if hint is float and not isinstance(value, bool):
            return float(value)
        if hint is str and not isinstance(value, (dict, list)) and value is not None:
            return "no" if value is False else str(value)  # YAML reads a bare `no` as false
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{where} is {value!r}; expected {_describe(hint)}")


def _describe(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("nothing" if h is type(None) else _describe(h) for h in arguments)
    return names.get(hint, str(hint))

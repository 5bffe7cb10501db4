"""A finished run as a folder that `from_pretrained` loads and the Hub shows: weights, model card, pictures."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)


def finish_folder(folder: Path, run_folder: Path, config: Any, recipe: str, usage: str, steps: int) -> None:
    """Model card and pictures beside the weights that a recipe has saved in `folder`; readable by others."""
    folder, run_folder = Path(folder), Path(run_folder)
    strip_local_paths(folder)
    validations = read_events(run_folder / "metrics.jsonl", "validation")
    last = validations[-1] if validations else None
    if last and last.get("images") and (run_folder / last["images"]).exists():
        (folder / "images").mkdir(exist_ok=True)
        shutil.copy(run_folder / last["images"], folder / "images" / "validation.png")
    (folder / "training_config.yaml").write_text(yaml.safe_dump(public(asdict(config)), sort_keys=False))
    name = _repository_name(config)
    (folder / "README.md").write_text(model_card(name, config, recipe, usage, steps, last))
    for path in [folder, *folder.rglob("*")]:
        # safetensors writes files that only their owner can read
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


def model_card(name: str, config: Any, recipe: str, usage: str, steps: int, validation: dict[str, Any] | None) -> str:
    """The README.md of a model repository, with the front matter that the Hub reads."""
    front = {
        "license": config.hub.license,
        "library_name": "diffusers",
        "tags": ["radio-map", "radiodiff", "radiodiff_diffusers", recipe],
    }
    data = config.data
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", f"# {name}", ""]
    lines += [f"Trained with the `{recipe}` recipe of radiodiff_diffusers for {steps:,} optimiser steps.", ""]
    lines += ["## How to use", "", "```python", usage.strip(), "```", ""]
    lines += ["## Data", "", f"- source: `{public(data.source)}`, split `{data.train_split}`"]
    if data.options:
        options = ", ".join(f"{k} = {v}" for k, v in public(data.options).items())
        lines.append(f"- options: {options}")
    if data.condition_channels:
        lines.append(f"- conditioned on: {', '.join(data.condition_channels)}")
    lines += [f"- predicts: {', '.join(data.image_channels)}", "", "## Results", ""]
    if validation:
        lines += _results(data, validation)
        if validation.get("images"):
            lines += [
                "![Truth, prediction, error](images/validation.png)",
                "",
                validation.get("picture_shows", "Each row: truth, prediction, error."),
                "",
            ]
    else:
        lines += ["This run was not validated.", ""]
    configuration = yaml.safe_dump(public(asdict(config)), sort_keys=False).strip()
    lines += ["## Configuration", "", "```yaml", configuration, "```", ""]
    lines += ["## Licence", "", f"{config.hub.license}. The training data may have terms of their own.", ""]
    return "\n".join(lines)


def _results(data: Any, validation: dict[str, Any]) -> list[str]:
    if "nmse" in validation:
        return [
            f"On {validation['scenes']} scenes of split `{data.validation_split}` at step {validation['step']:,}, per "
            f"map and then averaged, protocol `{validation['protocol']}`:",
            "",
            "| NMSE | RMSE | SSIM | PSNR (dB) |",
            "|---|---|---|---|",
            "| {nmse:.5f} | {rmse:.4f} | {ssim:.4f} | {psnr:.2f} |".format(**validation),
            "",
        ]
    scores = {k: v for k, v in validation.items() if isinstance(v, float) and k != "time"}
    return [
        f"On {validation['images_seen']} images that were not trained on, at step {validation['step']:,}:",
        "",
        f"| {' | '.join(scores)} |",
        "|" + "---|" * len(scores),
        f"| {' | '.join(f'{v:.4g}' for v in scores.values())} |",
        "",
    ]


class NotUploaded(Exception):
    """The finished model is on the disk and not on the Hub, in one line."""


def check_push(config: Any) -> None:
    """Before a run starts: whether its upload, after the last step, can be tried at all."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(_repository_name(config))
    if get_token() is None:
        raise ValueError(
            "hub.push is to upload the finished model, but nobody is logged in to the Hub: run `hf auth login`, set "
            "HF_TOKEN, or leave hub.push off"
        )


def push_folder(folder: Path, config: Any) -> str:
    """Upload the folder, its model card naming the repository; the repository's id."""
    from huggingface_hub import create_repo, upload_folder

    name = _repository_name(config)
    try:
        repository = create_repo(name, private=config.hub.private, exist_ok=True)
        card = Path(folder) / "README.md"
        given = config.hub.model_id or folder  # what the card loads: a folder here, or a name without its owner
        card.write_text(card.read_text().replace(f'"{given}"', f'"{repository.repo_id}"'))
        upload_folder(
            repo_id=repository.repo_id, folder_path=str(folder), commit_message="Trained with radiodiff_diffusers"
        )
    except Exception as error:  # of the network, the Hub, its client
        reason = " ".join(str(error).split())
        raise NotUploaded(
            f"the model is in {folder}, but could not be uploaded to {name} ({type(error).__name__}: {reason}); to "
            f"try again: hf upload {name} {folder}"
        ) from error
    logger.info("uploaded to %s", repository.url)
    return repository.repo_id


def _repository_name(config: Any) -> str:
    return config.hub.model_id or Path(config.train.output_dir).name


def strip_local_paths(folder: Path) -> None:
    """diffusers writes where a component was loaded from: a path of this machine, which is nobody else's business."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2) + "\n")


def read_events(path: Path, event: str) -> list[dict[str, Any]]:
    """Lines of one kind from a metrics.jsonl."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.get("event") == event:
            found.append(values)
    return found


def public(values: Any) -> Any:
    """Folders of this machine by their last part only."""
    if isinstance(values, dict):
        return {k: public(v) for k, v in values.items()}
    if isinstance(values, list):
        return [public(v) for v in values]
    return Path(values).name if isinstance(values, str) and values.startswith(("/", "~", "..")) else values

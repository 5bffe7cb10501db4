"""Saved pipelines that can be handed on: no path of this machine in them, readable by others, with a model card."""

from __future__ import annotations

import json
import os
from pathlib import Path

from diffusers import __version__ as diffusers_version
from huggingface_hub import ModelCard, ModelCardData


class SavedPipelineMixin:
    """Put before `DiffusionPipeline`; `save_pretrained` and `push_to_hub` then leave a folder fit for publishing."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As diffusers', and the model card is ours."""
        super().save_pretrained(os.fspath(save_directory), *args, **kwargs)
        tidy(Path(save_directory), self)

    def _upload_folder(self, working_dir, *args, **kwargs):
        # both ways to the Hub end here, after diffusers has put its own empty card into the folder
        tidy(Path(working_dir), self, replace_empty_card=True)
        return super()._upload_folder(working_dir, *args, **kwargs)


def tidy(folder: Path, pipeline, replace_empty_card: bool = False) -> None:
    """Remove local paths from the configurations, open the files to other users, and add a card where there is none."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    card = folder / "README.md"
    if not card.exists() or (replace_empty_card and "Model Card for" in card.read_text(encoding="utf-8")):
        card.write_text(str(model_card(pipeline)), encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def model_card(pipeline) -> ModelCard:
    """What the configuration tells of a pipeline: what it takes, what it gives, how to load it. Training adds its own part."""
    name = type(pipeline).__name__
    data = ModelCardData(
        library_name="diffusers", license="apache-2.0", tags=["radio-map", "radiodiff_diffusers"], pipeline_tag="image-to-image"
    )
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    lines = [f"# {name}", "", "## Use", ""]
    if name == "RadioDiffPipeline":
        channels = ", ".join(network.config.condition_channels)
        lines += [
            "```python",
            "from radiodiff_diffusers import RadioDiffPipeline, Scene  # pip install radiodiff_diffusers",
            "",
            'pipe = RadioDiffPipeline.from_pretrained("this repository or folder")',
            'radio_map = pipe(Scene("city.png", transmitter=(87, 120))).maps[0]',
            'radio_map.save("map.png")',
            "```",
            "",
            "After `import radiodiff_diffusers`, `diffusers.DiffusionPipeline.from_pretrained` loads it too.",
            "",
            f"It sees the condition channels {channels} and predicts the gain in dB at every pixel "
            f"({pipeline.config.num_inference_steps} steps by default).",
        ]
    else:
        lines += [
            "```python",
            f"from radiodiff_diffusers import {name}  # pip install radiodiff_diffusers",
            "",
            f'pipe = {name}.from_pretrained("this repository or folder")',
            "image = pipe(class_labels=[3]).images[0]",
            "```",
        ]
    lines += [
        "",
        "## Model",
        "",
        f"{type(network).__name__}, {millions:.1f} million parameters; saved with diffusers {diffusers_version}.",
        "",
        "## Data, metrics, limits",
        "",
        "Not stated by whoever saved this folder.",
        "",
        "## Licence",
        "",
        "Apache-2.0 unless stated otherwise.",
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines))

"""Saved pipelines that can be handed on: no path of this machine in them, readable by others, with a model card.

And loaded ones that say in one line what is wrong with a folder or a Hub repository, and what to do.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from diffusers import __version__ as diffusers_version
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from .hub_names import could_be_on_the_hub


class SavedPipelineMixin:
    """Put before `DiffusionPipeline`; `save_pretrained` and `push_to_hub` then leave a folder fit for publishing."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As diffusers'; what it cannot load is named in one line."""
        where = os.fspath(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(where, **kwargs)
        except Exception as error:
            reason = why_not(where, error, **kwargs)
            if reason is None:
                raise
            raise OSError(reason) from error

    def to(self, *args, **kwargs):
        """As diffusers'; float16 does run on a CPU, so it is not warned against."""
        return super().to(*args, **{"silence_dtype_warnings": True, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As diffusers', and the model card is ours."""
        super().save_pretrained(os.fspath(save_directory), *args, **kwargs)
        tidy(Path(save_directory), self)

    @classmethod
    def save_lora_weights(cls, save_directory: str | os.PathLike, *args, **kwargs):
        """As the LoRA mixin's, readable by others."""
        super().save_lora_weights(save_directory, *args, **kwargs)
        open_to_others(list(Path(save_directory).glob("*.safetensors")))

    def _upload_folder(self, working_dir, *args, **kwargs):
        # both ways to the Hub end here, after diffusers has put its own empty card into the folder
        tidy(Path(working_dir), self, replace_empty_card=True)
        return super()._upload_folder(working_dir, *args, **kwargs)


def tidy(folder: Path, pipeline, replace_empty_card: bool = False) -> None:
    """Remove local paths from the configurations, open the files to others, and add a card where there is none."""
    saved = saved_files(folder, pipeline)
    for path in saved:
        if path.suffix == ".json":
            config = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    card = folder / "README.md"
    if not card.exists() or (replace_empty_card and "Model Card for" in card.read_text(encoding="utf-8")):
        card.write_text(str(model_card(pipeline)), encoding="utf-8")
    open_to_others([*saved, card])
    for part in {path.parent for path in saved} - {folder}:
        part.chmod(0o755)


def saved_files(folder: Path, pipeline) -> list[Path]:
    """What a pipeline has written into a folder, which may hold other things that are none of our business."""
    written = [folder / "model_index.json"]
    for component in pipeline.components:
        written += [path for path in (folder / component).glob("*") if path.suffix in {".safetensors", ".json"}]
    return [path for path in written if path.is_file()]


def open_to_others(files: list[Path]) -> None:
    """Safetensors files come out readable by their owner alone, which is no use on a shared machine."""
    for path in files:
        path.chmod(0o644)


def why_not(where: str, error: Exception, **kwargs) -> str | None:
    """What kept a pipeline from loading, in one line; `None` where the error itself says it best."""
    folder = Path(where)
    if not folder.is_dir():
        if not could_be_on_the_hub(where):
            return f"{where}: no such folder; expected one that save_pretrained wrote, or a Hub id such as owner/name"
        folder = _cached(where, kwargs.get("cache_dir"), kwargs.get("revision"))
        reason = _why_not_downloaded(where, error, folder is not None)
        if reason or folder is None:
            return reason
    if not (folder / "model_index.json").is_file():
        return f"{where} is no pipeline: it has no model_index.json; expected a folder that save_pretrained wrote"
    for weights in sorted(folder.rglob("*.safetensors")):
        if not _readable(weights):
            return f"{weights} is damaged or was cut short: copy or download it again"
    if "no file named" in str(error):
        return _what_is_missing(where, folder)
    return None


def _why_not_downloaded(where: str, error: Exception, cached: bool) -> str | None:
    """The reason that lies with the Hub or the way there, if it does."""
    # by name: huggingface_hub has changed the library that its network errors come from
    causes = {name: cause for cause in _causes(error) for name in (base.__name__ for base in type(cause).__mro__)}
    if "RepositoryNotFoundError" in causes:
        return f"{where} is not on the Hub, or not to be seen by you, and no such folder is here: check the name"
    if "EntryNotFoundError" in causes and "model_index.json" in str(causes["EntryNotFoundError"]):
        return f"{where} is no pipeline: it has no model_index.json"
    for name in ("RemoteProtocolError", "ReadError", "ReadTimeout"):
        if name in causes:
            return f"the download of {where} broke off ({causes[name]}): call again, what came whole is kept"
    if not cached and {"TransportError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"} & set(causes):
        return f"{where} is not on this machine and the Hub was not reached: check the name, or go online once"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error and all that led to it."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _what_is_missing(where: str, folder: Path) -> str | None:
    for name, component in _read_index(folder).items():
        if name.startswith("_") or not isinstance(component, list) or component[0] is None:
            continue
        part = folder / name
        if not any(part.glob("*config.json")):
            return f"{where} is incomplete: {name}/ has no configuration, though model_index.json names it"
        if not (part / "config.json").is_file():  # no network
            continue
        weights = [file.name for file in (*part.glob("*.safetensors"), *part.glob("*.bin"))]
        if not weights:
            return f"{where} is incomplete: {name}/ has no weights (diffusion_pytorch_model.safetensors)"
        variants = {v[1] for file in weights if (v := re.match(r"[^.]+\.([a-z]\w*)(-\d+-of-\d+)?\.[a-z]+$", file))}
        if variants and all("." in Path(file).stem for file in weights):
            return f"{where} holds only the variant {' or '.join(sorted(variants))}: pass variant={min(variants)!r}"
    return None


def _read_index(folder: Path) -> dict:
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except ValueError:
        return {}


def _cached(name: str, cache_dir: str | None, revision: str | None) -> Path | None:
    """Where what there is of a Hub repository lies on this machine."""
    index = try_to_load_from_cache(name, "model_index.json", cache_dir=cache_dir, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def _readable(weights: Path) -> bool:
    try:
        with safe_open(weights, framework="pt"):
            return True
    except SafetensorError:
        return False


def model_card(pipeline) -> ModelCard:
    """What the configuration tells of a pipeline: what it takes and gives, how to load it; training adds the rest."""
    name = type(pipeline).__name__
    maps = name == "RadioDiffPipeline"
    data = ModelCardData(
        library_name="diffusers",
        license="apache-2.0",
        tags=["radio-map" if maps else "micro-doppler", "radiodiff_diffusers"],
        pipeline_tag="image-to-image" if maps else "unconditional-image-generation",
    )
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    lines = [f"# {name}", "", "## Use", ""]
    if maps:
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

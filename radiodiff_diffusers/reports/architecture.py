"""What a model is made of, found out by running it once: modules, shapes, parameters, FLOPs, memory.

    from radiodiff_diffusers.reports.architecture import inspect_model, load_model
    info = inspect_model(load_model("a_pipeline_folder"), height=256, width=256)

Nothing is written down by hand: the tree is the model's own, shapes and FLOPs come from hooks on one prediction,
memory from watching which tensors live while it runs, meanings of options from the docstrings of the classes.
"""

from __future__ import annotations

import inspect
import json
import re
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .document import counted


@dataclass
class Call:
    """One call of a module: what went in and came out, what it cost, and the calls it made."""

    name: str
    kind: str
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    flops: int = 0
    children: list[Call] = field(default_factory=list)


@dataclass
class Part:
    """A module in the tree. Counts include everything below it; FLOPs are of one prediction."""

    name: str
    kind: str
    parameters: int
    trainable: int
    bytes: int
    flops: int = 0
    calls: int = 0
    shape: tuple[int, ...] | None = None
    children: list[Part] = field(default_factory=list)


@dataclass
class ModelInfo:
    """Everything known of a model; `components` are its parts by name, `configs` their options with meanings."""

    name: str
    kind: str
    size: tuple[int, int]
    components: dict[str, Part]
    configs: dict[str, list[tuple[str, Any, str]]]
    calls: list[Call] = field(default_factory=list)
    steps: int | None = None
    seconds: float | None = None
    peak_bytes: int = 0
    why_not_run: str | None = None
    model: Any = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.components.values())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.components.values())

    @property
    def flops(self) -> int:
        return sum(call.flops for call in self.calls)


# Loading -----------------------------------------------------------------------------------------------------------


def load_model(name: str | None = None) -> Any:
    """A pipeline or a model: a folder, a Hub id, a preset's name (its weights are random), or the default model."""
    from .. import DEFAULT_MODEL
    from ..hub_names import could_be_on_the_hub
    from ..models.presets import RADIODIFF_AUTOENCODER, RADIODIFF_UNET_PRESETS

    if name in RADIODIFF_UNET_PRESETS:
        from diffusers import AutoencoderKL

        from .. import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel

        unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS[name])
        vae = AutoencoderKL(**RADIODIFF_AUTOENCODER) if name == "base" else None
        return RadioDiffPipeline(unet, ConstSDEScheduler(), vae)
    name = name or DEFAULT_MODEL
    folder = Path(name)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{name} is no model: it has neither model_index.json nor config.json")
        return _load_single(folder)
    if not folder.is_dir() and not could_be_on_the_hub(name):
        known = ", ".join(RADIODIFF_UNET_PRESETS)
        raise ValueError(f"{name}: no such folder; give a model's folder, a Hub id, or one of the presets {known}")
    from diffusers import DiffusionPipeline

    import radiodiff_diffusers  # its classes are known to diffusers from here on

    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name") if folder.is_dir() else None
    return getattr(radiodiff_diffusers, str(kind), DiffusionPipeline).from_pretrained(name)


def _load_single(folder: Path) -> Any:
    import diffusers

    import radiodiff_diffusers

    kind = json.loads((folder / "config.json").read_text()).get("_class_name", "")
    for library in (radiodiff_diffusers, diffusers):
        try:
            return getattr(library, kind).from_pretrained(folder)
        except AttributeError:
            continue
    raise ValueError(
        f"{folder} holds a {kind or 'model of no named class'}, which neither this library nor diffusers knows"
    )


# Looking -----------------------------------------------------------------------------------------------------------


def inspect_model(
    model: Any, height: int = 256, width: int = 256, steps: int | None = None, name: str = ""
) -> ModelInfo:
    """Count, then run one prediction of a map of `height` x `width` pixels on the CPU and watch it."""
    if min(height, width) < 16 or height * width > 4_000_000:
        raise ValueError(f"size must be 16 x 16 to 4 megapixels; got {width} x {height}")
    modules = named_components(model)
    scheduler = getattr(model, "scheduler", None)
    described = {**modules, **({"scheduler": scheduler} if scheduler is not None else {})}
    info = ModelInfo(
        name=name or getattr(model, "name_or_path", "") or type(model).__name__,
        kind=type(model).__name__,
        size=(height, width),
        components={label: _part(label, module) for label, module in modules.items()},
        configs={label: options_with_meaning(part) for label, part in described.items()},
        model=model,
    )
    if not isinstance(model, nn.Module) and hasattr(model, "config"):
        own = [row for row in options_with_meaning(model) if row[0] not in described]
        if own:
            info.configs = {"pipeline": own, **info.configs}
    run = _one_prediction(model, height, width, steps)
    if run is None:
        info.why_not_run = f"no sample input is known for {type(model).__name__}; parameters only"
        return info
    _watch(info, modules, run)
    info.steps = getattr(model, "_num_timesteps", None)
    started = time.perf_counter()
    with torch.no_grad():
        run()
    info.seconds = time.perf_counter() - started
    return info


def named_components(model: Any) -> dict[str, nn.Module]:
    if isinstance(model, nn.Module):
        return {"model": model}
    return {label: part for label, part in model.components.items() if isinstance(part, nn.Module)}


def _part(name: str, module: nn.Module) -> Part:
    parameters = {id(p): p for p in module.parameters()}.values()
    tensors = [*parameters, *{id(b): b for b in module.buffers()}.values()]
    return Part(
        name=name,
        kind=type(module).__name__,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        children=[_part(f"{name}.{child}", below) for child, below in module.named_children()],
    )


def _one_prediction(model: Any, height: int, width: int, steps: int | None):
    """A function that predicts once, or None for classes whose inputs are not known here."""
    kind = type(model).__name__
    if kind == "RadioDiffPipeline":
        import numpy as np

        from ..scene import Scene

        buildings = np.zeros((height, width), bool)
        buildings[height // 4 : height // 3, width // 5 : width // 2] = True
        scene = Scene(buildings, transmitter=(width // 2, height // 2), cars=np.zeros_like(buildings))
        model.set_progress_bar_config(disable=True)
        try:
            model.prepare_conditions(scene)
        except ValueError:
            return None  # a model of measurements, antennas ... that a plain scene does not have
        return lambda: model(scene, num_inference_steps=steps, generator=0)
    if kind == "LightningDiTPipeline":
        model.set_progress_bar_config(disable=True)
        return lambda: model(0, num_inference_steps=steps or 3, generator=torch.Generator().manual_seed(0))
    if kind == "AutoencoderKL":
        image = torch.zeros(1, model.config.in_channels, height, width)
        return lambda: model(image)
    if kind == "RadioDiffUNet2DModel":
        side = (height, width) if model.config.in_channels == 1 else (height // 4, width // 4)
        sample = torch.zeros(1, model.config.in_channels, *side)
        condition = torch.zeros(1, len(model.config.condition_channels), height, width)
        return lambda: model(sample, torch.tensor([0.5]), condition)
    if kind == "LightningDiTTransformer2DModel":
        sample = torch.zeros(1, model.config.in_channels, model.config.sample_size, model.config.sample_size)
        return lambda: model(sample, torch.tensor([0.5]), torch.tensor([0]))
    return None


# torch itself counts attention by the kernels of GPUs only.
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, **kwargs: sdpa_flop_count(query, key, value)
    )
}


def _watch(info: ModelInfo, modules: dict[str, nn.Module], run) -> None:
    """Run once under hooks: the tree of calls, FLOPs of each, and the most memory that lived at a time."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
    stack: list[Call] = []
    hooks: list[Any] = []
    totals: dict[str, tuple[int, Any]] = {}
    names: dict[nn.Module, str] = {}
    for label, module in modules.items():
        module.eval()
        for path, part in module.named_modules():
            names.setdefault(part, f"{label}.{path}".rstrip("."))

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(names[module], type(module).__name__, _shapes((args, kwargs)))
        call.flops = -counter.get_total_flops()
        (stack[-1].children if stack else info.calls).append(call)
        stack.append(call)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        call = stack.pop()
        call.flops += counter.get_total_flops()
        call.outputs = _shapes(output)
        totals[call.name] = (totals.get(call.name, (0, None))[0] + 1, call.outputs[0] if call.outputs else None)

    for module in names:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    memory = _LiveMemory()
    try:
        with torch.no_grad(), memory, counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    info.peak_bytes = memory.peak
    flops: dict[str, int] = {}
    _credit(info.calls, flops)
    for part in info.components.values():
        _fill(part, flops, totals)


def _fill(part: Part, flops: dict[str, int], totals: dict[str, tuple[int, Any]]) -> None:
    part.flops = flops.get(part.name, 0)
    part.calls, part.shape = totals.get(part.name, (0, None))
    for child in part.children:
        _fill(child, flops, totals)


def _credit(calls: list[Call], flops: dict[str, int], credited: frozenset[str] = frozenset()) -> None:
    """FLOPs of each part of the tree: of its own calls, and of calls of what lies below made without going through it.

    An autoencoder's decoder is called alone, a U-Net's condition encoder before the U-Net: both count for the whole.
    """
    for call in calls:
        words = call.name.split(".")
        above = {".".join(words[: n + 1]) for n in range(len(words))} - credited
        for name in above:
            flops[name] = flops.get(name, 0) + call.flops
        _credit(call.children, flops, credited | above)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if type(value).__name__ == "DiagonalGaussianDistribution" or type(value).__name__ == "AutoencoderKLOutput":
        value = value.parameters
    leaves = tree_leaves(value)
    return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]


class _LiveMemory(TorchDispatchMode):
    """The largest sum of bytes of the tensors that were made inside and lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in given:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


# Options and what they mean ----------------------------------------------------------------------------------------


# Options that diffusers' own classes leave unexplained.
NOT_IN_DOCSTRINGS = {
    "AutoencoderKL": {
        "layers_per_block": "Residual blocks a level.",
        "norm_num_groups": "Groups of the group norms.",
        "shift_factor": "Subtracted from latents before they are scaled; none where they are centred as they are.",
        "latents_mean": "Mean of each latent channel, where latents are normalised channel by channel.",
        "latents_std": "Standard deviation of each latent channel, likewise.",
        "use_quant_conv": "A 1 x 1 convolution between encoder and posterior.",
        "use_post_quant_conv": "A 1 x 1 convolution between latent and decoder.",
    },
}


def options_with_meaning(part: Any) -> list[tuple[str, Any, str]]:
    """(option, value, meaning), the meaning from the class's docstring."""
    config = getattr(part, "config", None)
    if config is None:
        return []
    meanings = docstring_arguments(inspect.getdoc(type(part)) or "")
    if not meanings:
        meanings = docstring_arguments(inspect.getdoc(type(part).__init__) or "")
    meanings = {**NOT_IN_DOCSTRINGS.get(type(part).__name__, {}), **meanings}
    return [(k, v, meanings.get(k, "")) for k, v in dict(config).items() if not k.startswith("_")]


def docstring_arguments(text: str) -> dict[str, str]:
    """{argument: meaning} of a docstring with an Args or Parameters section."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    start = next(
        (i for i, line in enumerate(lines) if re.fullmatch(r"\s*(Args|Arguments|Parameters):\s*", line)), None
    )
    if start is None:
        return found
    names: list[str] = []
    indent = None
    for line in lines[start + 1 :]:
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        if depth < indent:
            break
        head = re.match(r"\s*([\w, ]+?)\s*\(.*?\)\s*:\s*(.*)", line) if depth == indent else None
        if head:
            names = [name.strip() for name in head[1].split(",")]
            for name in names:
                found[name] = head[2].strip()
        elif depth > indent:
            for name in names:
                found[name] = f"{found[name]} {line.strip()}".strip()
    return found


# As text -----------------------------------------------------------------------------------------------------------


def print_info(info: ModelInfo, depth: int = 2) -> str:
    """The table that the command line prints."""
    height, width = info.size
    lines = [f"{info.name} ({info.kind})", ""]
    lines += [f"parameters   {info.parameters:,} ({info.parameters / 1e6:.2f} M)", f"weights      {mega(info.bytes)}"]
    if info.why_not_run:
        lines.append(f"not run:     {info.why_not_run}")
    else:
        steps = f", {counted(info.steps, 'model evaluation')}" if info.steps else ""
        lines += [
            f"cost         {flop(info.flops)} (multiply and add: 2) for one prediction of {width} x {height}{steps}",
            f"memory       {mega(info.bytes + info.peak_bytes)} at most, {mega(info.peak_bytes)} of it activations",
            f"time         {info.seconds:.2f} s on this CPU, {torch.get_num_threads()} threads",
        ]
    lines += ["", f"{'module':44} {'class':28} {'parameters':>12} {'FLOPs':>9} {'calls':>5}  output"]
    for part in info.components.values():
        lines += _tree_lines(part, depth)
    return "\n".join(lines)


def _tree_lines(part: Part, depth: int, level: int = 0) -> list[str]:
    name = "  " * level + (part.name if level == 0 else part.name.rsplit(".", 1)[-1])
    shape = " x ".join(map(str, part.shape)) if part.shape else ""
    lines = [
        f"{name:44.44} {part.kind:28.28} {part.parameters:12,} {short(part.flops):>9} {part.calls or '':>5}  {shape}"
    ]
    if level < depth:
        for child in part.children:
            lines += _tree_lines(child, depth, level + 1)
    return lines


def short(number: float) -> str:
    """1234567 -> 1.23 M."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {letter}"
    return f"{number:.3g}"


def flop(number: float) -> str:
    """1234567 -> 1.23 MFLOP."""
    text = short(number)
    return f"{text}FLOP" if text[-1].isalpha() else f"{text} FLOP"


def mega(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

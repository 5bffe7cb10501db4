"""The architecture page: what `architecture` found out about a model, as diagrams, tables and equations."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from .architecture import Call, ModelInfo, Part, flop, mega, short
from .document import Document, counted
from .svg import Diagram
from .training import flatten

COMPONENT_FILLS = ("blue", "green", "orange", "pink", "yellow")


def write_page(info: ModelInfo, path: str | Path) -> Path:
    """Writes the HTML page `path`, a Markdown twin, and the diagrams as SVG files beside them."""
    path = Path(path)
    if path.suffix.lower() not in {".html", ".htm"}:
        path = path / "architecture.html"
    name, pictures = path.stem, path.parent / f"{path.stem}_figures"
    document = Document(f"Architecture: {Path(info.name).name if Path(info.name).is_dir() else info.name}")
    _in_short(document, info)
    document.heading("Modules")
    picture = _icicle(info).write(pictures / "modules.svg", "Module tree by parameters")
    document.figure(
        picture, "The module tree, from the whole on the left to its parts: heights are shares of the parameters."
    )
    if info.calls:
        document.heading("One prediction")
        picture = _data_flow(info).write(pictures / "prediction.svg", "Data flow of one prediction")
        height, width = info.size
        document.figure(
            picture,
            f"What is called in what order for a map of {width} x {height} pixels, with shapes and costs.",
        )
        document.text("A multiplication and an addition are 2 FLOP; convolutions and matrix products are counted.")
        document.table(
            ["called", "times", "a call, at most", "together"],
            [[f"`{call.name}`", n, flop(call.flops), flop(flops)] for call, n, flops in call_groups(info)],
        )
    flow = _training_flow(info)
    if flow is not None:
        document.heading("Training")
        document.figure(flow.write(pictures / "training.svg", "Training flow"), "What happens in one training step.")
    _losses(document, info)
    _equations(document, info)
    document.heading("Options")
    for label, rows in info.configs.items():
        document.heading(label, 3)
        document.table(["option", "value", "meaning"], [[f"`{k}`", _value(v), meaning] for k, v, meaning in rows])
    document.heading("All modules")
    for part in info.components.values():
        document.code("\n".join(_lines(part, depth=4)))
    document.write(path.parent, name)
    return path.with_suffix(".html")


def _in_short(document: Document, info: ModelInfo) -> None:
    height, width = info.size
    document.heading("In short")
    document.text(
        f"**{info.kind}** with {info.parameters / 1e6:,.2f} million parameters, {mega(info.bytes)} of weights."
    )
    if info.why_not_run:
        document.note("info", info.why_not_run)
    else:
        times = f" in {counted(info.steps, 'evaluation')} of the network" if info.steps else ""
        document.text(
            f"One prediction of {width} x {height} pixels: {flop(info.flops)}{times}, "
            f"{mega(info.bytes + info.peak_bytes)} of memory at most ({mega(info.peak_bytes)} of it activations), "
            f"{info.seconds:.2f} s on the CPU this page was made on."
        )
    document.table(
        ["component", "class", "parameters", "trainable", "weights", "FLOP", "calls", "last output"],
        [
            [
                p.name,
                p.kind,
                p.parameters,
                p.trainable,
                mega(p.bytes),
                short(p.flops),
                p.calls or None,
                _shape(p.shape),
            ]
            for p in info.components.values()
        ],
    )


# Diagrams ----------------------------------------------------------------------------------------------------------


def _icicle(info: ModelInfo, depth: int = 4, height: float = 560, column: float = 190) -> Diagram:
    """Columns are levels of the tree, heights shares of the parameters; what is too thin to see is left out."""
    diagram = Diagram()
    total = max(info.parameters, 1)

    def draw(part: Part, level: int, top: float, fill: str) -> None:
        tall = height * part.parameters / total
        if tall < 6:
            return
        x = level * (column + 4) + 4
        title = part.name if level == 0 else part.name.rsplit(".", 1)[-1]
        notes = (f"{part.kind}, {part.parameters / 1e6:.2f} M",) if tall > 34 else ()
        if tall > 16:
            diagram.box(x, top, column, tall - 2, title, notes, fill)
        else:
            diagram.box(x, top, column, tall - 0.5, "", (), fill)
        below = top
        if level < depth:
            for child in part.children:
                draw(child, level + 1, below, fill)
                below += height * child.parameters / total

    top = 4.0
    for i, part in enumerate(info.components.values()):
        draw(part, 0, top, COMPONENT_FILLS[i % len(COMPONENT_FILLS)])
        top += height * part.parameters / total
    return diagram


WIDE, GAP, ACROSS = 214, 22, 4  # boxes of the data flow: width, distance, and how many stand in a line


def _data_flow(info: ModelInfo) -> Diagram:
    """A row a component, in the order of its first call; beside it, line by line, what it calls itself."""
    diagram = Diagram()
    fills = {label: COMPONENT_FILLS[i % len(COMPONENT_FILLS)] for i, label in enumerate(info.components)}
    first, last = _ends(info)
    x, y, before = 10, 8.0, 0.0
    if first:
        tall = _box(diagram, x, y, *first, "green")
        before, y = y + tall, y + tall + GAP
    for call, count, flops in call_groups(info):
        if before:
            diagram.arrow(x + WIDE / 2, before, x + WIDE / 2, y)
        notes = [call.kind, f"{flop(flops)}" + (f" in {count} calls" if count > 1 else "")]
        given = [_shape(shape) for shape in call.inputs if shape]
        notes += [f"given {given[0]}"] if given else []
        if count > 1 and info.kind == "RadioDiffPipeline":
            notes += ["begins with noise,", "a scheduler step after each call"]
        tall = _box(diagram, x, y, call.name, tuple(notes), fills[call.name.split(".")[0].split(":")[0]])
        below = _children(diagram, call, x + WIDE + 2 * GAP, y, y + tall / 2)
        before, y = y + tall, max(y + tall, below) + GAP
    if last:
        diagram.arrow(x + WIDE / 2, before, x + WIDE / 2, y)
        _box(diagram, x, y, *last, "green")
    return diagram


def call_groups(info: ModelInfo) -> list[tuple[Call, int, int]]:
    """What a prediction calls from outside: the costliest call of each name, how often, and FLOPs of all together."""
    groups: list[tuple[Call, int, int]] = []
    for call in _gathered(info.calls):
        known = next((i for i, (first, *_) in enumerate(groups) if first.name == call.name), None)
        if known is None:
            groups.append((call, 1, call.flops))
        else:
            first, count, flops = groups[known]
            groups[known] = (max(first, call, key=lambda c: c.flops), count + 1, flops + call.flops)
    return groups


def _ends(info: ModelInfo) -> tuple[tuple | None, tuple | None]:
    """The boxes before and after the model: what a user hands in and gets back."""
    if info.kind != "RadioDiffPipeline":
        return None, None
    height, width = info.size
    channels = list(info.model.unet.config.condition_channels)
    lines = [", ".join(channels[i : i + 2]) for i in range(0, len(channels), 2)]
    return (
        ("scene", (*lines, f"as planes {_shape((1, len(channels), height, width))}")),
        ("radio map", (f"{width} x {height} pixels, gain in dB",)),
    )


def _box(diagram: Diagram, x: float, y: float, title: str, notes: tuple[str, ...], fill: str) -> float:
    """Draws a box as tall as its lines; returns that height."""
    tall = 15 * (1 + len(notes)) + 10
    diagram.box(x, y, WIDE, tall, title, notes, fill)
    return tall


def _children(diagram: Diagram, call: Call, left: float, top: float, middle: float) -> float:
    """The calls that a call makes, from left to right and line by line; returns where they end below."""
    rows, left_out = _merged(call.children, 8 if call.name.endswith(": prepared") else 24)
    tall, step = 55, 55 + GAP
    if rows:
        diagram.path([(left - 2 * GAP, middle), (left - GAP, middle), (left - GAP, top + 20), (left, top + 20)])
    for k, (child, final, count, flops) in enumerate(rows):
        x, y = left + k % ACROSS * (WIDE + GAP), top + k // ACROSS * step
        title = _names(child.name.removeprefix(f"{call.name.split(':')[0]}."), final.name, count)
        shape = _shape(child.outputs[0] if child.outputs else None)
        diagram.box(x, y, WIDE, tall, title, (f"{child.kind}, {flop(flops)}", f"gives {shape}"), "gray")
        if k + 1 == len(rows):
            break
        if (k + 1) % ACROSS:
            diagram.arrow(x + WIDE, y + tall / 2, x + WIDE + GAP, y + tall / 2)
        else:
            turn = y + tall + GAP / 2
            a, b = x + WIDE / 2, left + WIDE / 2
            diagram.path([(a, y + tall), (a, turn), (b, turn), (b, y + step)])
    below = top + -(-len(rows) // ACROSS) * step - GAP if rows else top
    if left_out:
        diagram.text(left, below + 14, f"and {left_out} cheaper calls", 10, "#5c6670")
        below += 16
    return below


def _names(first: str, last: str, count: int) -> str:
    """stages.0 to 3 for neighbours of one kind that stand as one; a name with its count where one is called again."""
    if count == 1:
        return first
    end = last.rsplit(".", 1)[-1]
    return f"{first} x {count}" if first.rsplit(".", 1)[-1] == end else f"{first} to {end}"


def _gathered(calls: list[Call]) -> list[Call]:
    """Runs of small pieces that are called from outside (projections of the condition, say) as one call of theirs."""
    gathered: list[Call] = []
    for call in calls:
        component = call.name.split(".")[0]
        if call.name.count(".") < 2:
            gathered.append(call)
        elif gathered and gathered[-1].name == f"{component}: prepared":
            gathered[-1].children.append(call)
            gathered[-1].flops += call.flops
        else:
            gathered.append(Call(f"{component}: prepared", "once for all steps", call.inputs, [], call.flops, [call]))
    return gathered


def _merged(calls: list[Call], most: int) -> tuple[list[tuple[Call, Call, int, int]], int]:
    """(first, last, count, FLOPs) of neighbouring calls of one class and shape; the cheapest of too many left out."""
    rows: list[tuple[Call, Call, int, int]] = []
    for call in calls:
        if rows and rows[-1][0].kind == call.kind and rows[-1][0].outputs == call.outputs:
            first, _, count, flops = rows[-1]
            rows[-1] = (first, call, count + 1, flops + call.flops)
        else:
            rows.append((call, call, 1, call.flops))
    keep = set(sorted(range(len(rows)), key=lambda i: -rows[i][3])[:most])
    return [row for i, row in enumerate(rows) if i in keep], len(rows) - len(keep)


def _training_flow(info: ModelInfo) -> Diagram | None:
    """The step of the recipe that belongs to this kind of model, with this model's own numbers."""
    model, d = info.model, Diagram()
    kind = info.kind
    if kind == "RadioDiffPipeline":
        unet, vae, scheduler = model.unet, getattr(model, "vae", None), model.scheduler
        channels = list(unet.config.condition_channels)
        latent = f"{unet.config.in_channels} x {_side(unet.config.sample_size)}"
        d.box(10, 10, 150, 46, "radio map", ("gray in [-1, 1]",), "green")
        if vae is not None:
            factor = vae.config.scaling_factor
            d.box(200, 10, 170, 46, "autoencoder (frozen)", (f"posterior sample x {factor:g}",), "gray")
            d.arrow(160, 33, 200, 33)
            d.arrow(370, 33, 410, 33)
        else:
            d.arrow(160, 33, 410, 33)
        d.box(410, 10, 130, 46, "x0", (latent,), "green")
        d.box(410, 100, 130, 46, "noise, t", (f"t in [{scheduler.config.eps:g}, 1]",), "yellow")
        d.box(590, 55, 190, 46, "x_t = (1 - t) x0 + √t noise", ("scheduler.add_noise",), "yellow")
        d.path([(540, 33), (565, 33), (565, 70), (590, 70)])
        d.path([(540, 123), (565, 123), (565, 86), (590, 86)])
        d.box(410, 190, 130, 46 + 13 * max(len(channels) - 1, 0), "scene", tuple(channels), "green")
        d.box(590, 190, 190, 46, "condition encoder", (_count(info, "unet.encoder"),), "blue")
        d.arrow(540, 213, 590, 213)
        d.box(
            830, 55, 190, 60, "U-Net", (f"{unet.num_parameters() / 1e6:.2f} M parameters", "drift C and noise"), "blue"
        )
        d.arrow(780, 78, 830, 78)
        d.path([(780, 213), (925, 213), (925, 115)])
        d.box(1070, 10, 230, 46, "loss of the drift", ("w1(t) = 2 e^(1-t), target C = -x0",), "orange")
        d.box(1070, 110, 230, 46, "loss of the noise", ("w2(t) = e^√t, target noise",), "orange")
        d.path([(1020, 75), (1045, 75), (1045, 33), (1070, 33)])
        d.path([(1020, 95), (1045, 95), (1045, 133), (1070, 133)])
        return d
    if kind == "AutoencoderKL":
        config = model.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        d.box(10, 40, 130, 46, "image", (f"{config.in_channels} channels",), "green")
        d.box(180, 40, 150, 46, "encoder", (_count(info, "model.encoder"), f"1/{scale} of each side"), "blue")
        d.box(370, 40, 170, 46, "posterior", (f"{config.latent_channels} channels, sampled",), "yellow")
        d.box(580, 40, 150, 46, "decoder", (_count(info, "model.decoder"),), "blue")
        d.box(770, 40, 150, 46, "reconstruction", (), "green")
        d.box(370, 130, 170, 46, "KL loss", ("against a normal",), "orange")
        d.box(770, 130, 150, 46, "L1 + L2 + LPIPS", ("against the image",), "orange")
        d.box(960, 40, 170, 46, "PatchGAN", ("hinge, from disc_start on",), "pink")
        for x1, x2 in ((140, 180), (330, 370), (540, 580), (730, 770), (920, 960)):
            d.arrow(x1, 63, x2, 63)
        d.arrow(455, 86, 455, 130)
        d.arrow(845, 86, 845, 130)
        return d
    if kind in {"LightningDiTPipeline", "LightningDiTTransformer2DModel"}:
        config = (model if kind == "LightningDiTTransformer2DModel" else model.transformer).config
        d.box(
            10, 10, 160, 46, "latents, normalised", (f"{config.in_channels} x {_side(config.sample_size)}",), "green"
        )
        d.box(10, 90, 160, 46, "noise, t", ("t: 0 noise, 1 data",), "yellow")
        d.box(220, 50, 200, 46, "x_t = t x1 + (1 - t) noise", (), "yellow")
        d.path([(170, 33), (195, 33), (195, 66), (220, 66)])
        d.path([(170, 113), (195, 113), (195, 82), (220, 82)])
        d.box(220, 140, 200, 46, "class label", (f"dropped with p = {config.class_dropout_prob:g}",), "green")
        d.box(470, 50, 200, 46, "transformer", (f"{info.parameters / 1e6:.1f} M parameters in all",), "blue")
        d.arrow(420, 73, 470, 73)
        d.path([(420, 163), (570, 163), (570, 96)])
        d.box(720, 50, 230, 46, "loss of the velocity", ("target x1 - noise: squares, and cosine",), "orange")
        d.arrow(670, 73, 720, 73)
        return d
    return None


def _count(info: ModelInfo, name: str) -> str:
    part: Part | None = info.components.get(name.split(".")[0])
    words = name.split(".")
    for n in range(2, len(words) + 1):
        part = next((c for c in part.children if c.name == ".".join(words[:n])), None) if part else None
    return f"{part.parameters / 1e6:.2f} M parameters" if part else ""


# Losses and equations ------------------------------------------------------------------------------------------------


def _losses(document: Document, info: ModelInfo) -> None:
    """The loss functions of this library, by name, with what their docstrings say."""
    wanted = {
        "RadioDiffPipeline": ("pair_loss", "gradient_term", "ssim_term", "helmholtz_term"),
        "AutoencoderKL": (
            "pixel_error", "summed_nll", "kl_divergence", "generator_loss", "discriminator_loss", "adaptive_weight",
            "feature_matching",
        ),
    }.get(info.kind, ())  # fmt: skip
    if not wanted:
        return
    from ..training import losses

    rows = []
    for name in wanted:
        function = getattr(losses, name, None)
        if function is not None:
            first = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
            rows.append([f"`{name}`", first])
    document.heading("Loss terms")
    document.text("Functions of `radiodiff_diffusers.training.losses`; the terms are added where a recipe names them.")
    document.table(["function", "what it is"], rows)


def _equations(document: Document, info: ModelInfo) -> None:
    if info.kind == "RadioDiffPipeline":
        config = info.model.scheduler.config
        last = (
            f"the last step is split into 1/N - {config.eps:g} and {config.eps:g}"
            if config.final_denoise
            else "equal steps"
        )
        step, fresh = {
            "sde": ("x_t + s x0 - s / √t ε + √(s (t - s) / t) z", "`z` fresh noise at every step but the last"),
            "ode": ("(1 - t + s) x0 + √(t - s) ε", "no fresh noise"),
        }[config.solver]
        document.heading("Equations")
        document.items(
            [
                "Forward: `x_t = x0 + C t + √t ε`, `C = -x0`, so `x_t = (1 - t) x0 + √t ε`; t = 0 is data, 1 noise.",
                "The network gives drift `C` and noise `ε`: `C = (1 - t) x + t / √(t² + 1) F1`, "
                "`ε = √t x + √(1 - t) / √(t² + 1) F2`.",
                "Clean sample as predicted: `x0 = x_t - C t - √t ε`"
                + (", clipped to [-1, 1]." if config.clip_sample else "."),
                f"Step from t to t - s (`solver` {config.solver}): `x = {step}`, {fresh}; {last}.",
                "Loss: `2 e^(1-t) |C - C'|² + e^√t |ε - ε'|²`, halved together with the same in absolute values "
                "where L1 is on.",
            ]
        )
    elif info.kind == "AutoencoderKL":
        document.heading("Equations")
        document.items(
            [
                "Reconstruction: `|x - r| + (x - r)²` at every pixel plus LPIPS, summed over a sample, averaged "
                "over the batch.",
                "KL: `½ Σ (μ² + σ² - 1 - log σ²)`.",
                "GAN: generator `-mean D(r)`, discriminator `½ mean(max(0, 1 - D(x)) + max(0, 1 + D(r)))`, the "
                "generator's "
                "weight `|∇ reconstruction| / (|∇ generator| + 10⁻⁴)` at the decoder's last layer, at most 10⁴.",
                f"Latents are multiplied by {info.model.config.scaling_factor:g} before diffusion.",
            ]
        )
    elif info.kind.startswith("LightningDiT"):
        document.heading("Equations")
        document.items(
            [
                "Path: `x_t = t x1 + (1 - t) ε`; the network predicts the velocity `v = x1 - ε`.",
                "Loss: `|v - v'|² + 1 - cos(v, v')`.",
                "Sampling: Euler steps of `dx/dt = v`; guidance `v = v_null + w (v_class - v_null)`.",
            ]
        )


# Small things ------------------------------------------------------------------------------------------------------


def _lines(part: Part, depth: int, level: int = 0) -> list[str]:
    name = "  " * level + (part.name if level == 0 else part.name.rsplit(".", 1)[-1])
    lines = [f"{name:46} {part.kind:28} {part.parameters:>12,} {short(part.flops):>9}  {_shape(part.shape)}"]
    return lines + (
        [line for child in part.children for line in _lines(child, depth, level + 1)] if level < depth else []
    )


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) if shape else ""


def _side(size: Any) -> str:
    return f"{size} x {size}" if isinstance(size, int) else " x ".join(map(str, size))


def _value(value: Any) -> str:
    if isinstance(value, dict) and value:
        return ", ".join(f"{k} = {v}" for k, v in flatten(value).items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)

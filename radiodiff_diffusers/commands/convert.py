"""Turn the original RadioDiff's, VA-VAE's or LightningDiT's checkpoints into folders diffusers loads, and back."""

import argparse

KINDS = ("radiodiff", "vae", "vavae", "lightningdit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a checkpoint of the original (.pt, .ckpt); with --to-original, a folder of ours"
    )
    parser.add_argument("target", help="the folder to write; with --to-original, the .pt file")
    parser.add_argument("--kind", choices=KINDS, help="what the checkpoint is (default: seen from its entries)")
    parser.add_argument("--config", metavar="YAML", help="the original's configuration file")
    parser.add_argument("--vae", metavar="FILE", help="the autoencoder's checkpoint, when the source has none")
    parser.add_argument(
        "--channels",
        metavar="NAMES",
        help="condition planes, comma-separated; five (buildings,transmitter,cars,k2,k2) are brought to three",
    )
    parser.add_argument("--no-ema", action="store_true", help="take the trained weights, not the averaged ones")
    parser.add_argument("--image-channels", type=int, choices=(1, 3), help="VA-VAE for gray (1) or colour (3) images")
    parser.add_argument("--num-heads", type=int, metavar="N", help="LightningDiT's, where its width is none published")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="new classes for LightningDiT, each from its null class"
    )
    parser.add_argument("--to-original", action="store_true", help="write a U-Net of ours in the original's format")


def run(args: argparse.Namespace) -> int:
    if args.to_original:
        return _to_original(args.source, args.target)
    kind = args.kind or _kind_of(args.source)
    if kind == "radiodiff":
        from ..convert import pipeline_from_original

        channels = args.channels.split(",") if args.channels else None
        model = pipeline_from_original(args.source, not args.no_ema, args.vae, args.config, channels)
    elif kind == "vae":
        from ..convert.radiodiff import read_original, vae_from_original

        model = vae_from_original(read_original(args.source, not args.no_ema).vae)
    elif kind == "vavae":
        from ..convert.vavae import vavae_from_file

        model = vavae_from_file(args.source, channels=args.image_channels)
    else:
        from ..convert.lightningdit import lightningdit_from_file

        options = {"num_heads": args.num_heads, "num_classes": args.num_classes, "use_ema": not args.no_ema}
        model = lightningdit_from_file(args.source, **options)
    model.save_pretrained(args.target)
    print(f"{args.target}: {type(model).__name__} of {args.source}")
    return 0


def _kind_of(source: str) -> str:
    """Which of the originals a checkpoint belongs to, by the names of its tensors."""
    from ..convert.vavae import load_original_checkpoint

    checkpoint = load_original_checkpoint(source)
    inner = next(
        (checkpoint[k] for k in ("ema", "model", "state_dict") if isinstance(checkpoint.get(k), dict)), checkpoint
    )
    names = list(map(str, inner))
    if any("x_embedder.proj." in name for name in names):
        return "lightningdit"
    if any("init_conv" in name for name in names):
        return "radiodiff"
    if any(name.startswith(("foundation_model.", "linear_proj.")) for name in names):
        return "vavae"
    if any("decoder.conv_in." in name for name in names):
        # VA-VAE's tokenizers work on colours and have five levels, RadioDiff's autoencoders three
        return "vavae" if any("encoder.down.4." in name for name in names) else "vae"
    raise ValueError(f"{source} is none of the originals known ({', '.join(KINDS)}); its first entries: {names[:3]}.")


def _to_original(folder: str, target: str) -> int:
    import os

    import torch

    from ..convert import unet_to_original
    from ..models import RadioDiffUNet2DModel

    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: no such folder; --to-original takes one that save_pretrained wrote")
    subfolder = "unet" if os.path.isdir(os.path.join(folder, "unet")) else None
    unet = RadioDiffUNet2DModel.from_pretrained(folder, subfolder=subfolder)
    torch.save({"model": {f"model.{name}": tensor for name, tensor in unet_to_original(unet).items()}}, target)
    print(f"{target}: the U-Net of {folder} under the original's names")
    return 0

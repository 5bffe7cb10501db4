"""Encode a folder of images once, so that training a diffusion transformer reads latents."""

import argparse
import json
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    extract = actions.add_parser("extract", help="encode a folder of images by user; goes on where it was stopped")
    extract.add_argument("data", help="folder with a folder of images for each user: user_00 ... or ID_1 ...")
    extract.add_argument("-t", "--tokenizer", required=True, help="diffusers folder, Hub id, or original .ckpt or .pt")
    extract.add_argument("-o", "--output", required=True, help="folder for the latents")
    extract.add_argument("--size", type=int, default=256, metavar="PIXELS", help="size of the images (default: 256)")
    extract.add_argument("--num-classes", type=int, metavar="N", help="users (default: up to the highest number)")
    extract.add_argument("--allow-missing", action="store_true", help="users may be missing; others keep their ids")
    extract.add_argument("--flip", action="store_true", help="also mirrored images; wrong for spectrograms")
    extract.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (default: 8)")
    extract.add_argument("--shard-size", type=int, default=1024, metavar="N", help="images a file (default: 1024)")
    extract.add_argument("--processes", type=int, default=1, metavar="N", help="on this machine (default: 1)")
    extract.add_argument("--workers", type=int, default=0, metavar="N", help="that read images (default: 0)")
    extract.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    extract.add_argument("--bf16", action="store_true", help="encode in bfloat16")
    extract.add_argument("--seed", type=int, default=0, metavar="N", help="of the stored samples (default: 0)")
    extract.add_argument("--overwrite", action="store_true", help="remove latents of another tokenizer or data first")

    info = actions.add_parser("info", help="say what a folder of latents holds")
    info.add_argument("folder")
    info.add_argument("--json", action="store_true", help="everything, as JSON")


def run(args: argparse.Namespace) -> int:
    if args.action == "info":
        return _info(args)
    if args.processes < 1:
        raise ValueError(f"--processes is {args.processes}: expected at least 1")
    if args.processes == 1:
        _extract(args)
    else:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        ranks = range(args.processes)
        others = [context.Process(target=_extract_in_process, args=(args, r, args.processes)) for r in ranks]
        for process in others:
            process.start()
        for process in others:
            process.join()
        if any(process.exitcode for process in others):
            return 1
    if not (Path(args.output) / "latents.json").exists():  # one of several launched processes, others still at work
        return 0
    return _info(argparse.Namespace(folder=args.output, json=False))


def _extract_in_process(args: argparse.Namespace, rank: int, world_size: int) -> None:
    try:
        _extract(args, rank, world_size)
    except (ValueError, OSError) as error:
        sys.exit(f"radiodiff latents extract: {error}")


def _extract(args: argparse.Namespace, rank: int | None = None, world_size: int | None = None) -> None:
    import torch

    from ..convert.vavae import load_tokenizer
    from ..data.hub_users import users_folder
    from ..data.latents import extract_latents
    from ..data.micro_doppler import MicroDopplerFolder, find_users
    from . import choose_device

    if world_size:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    device = choose_device(args.device)
    local_rank = int(os.environ.get("LOCAL_RANK", rank or 0))
    if device == "cuda" and torch.cuda.device_count() > 1:
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
    vae = load_tokenizer(args.tokenizer)
    data = users_folder(args.data)
    dataset = MicroDopplerFolder(
        data,
        size=args.size,
        channels=vae.config.in_channels,
        num_classes=args.num_classes or max(find_users(data)) + 1,
        allow_missing=args.allow_missing,
    )
    extract_latents(
        vae,
        dataset,
        args.output,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        flip=args.flip,
        seed=args.seed,
        device=device,
        workers=args.workers,
        rank=rank,
        world_size=world_size,
        overwrite=args.overwrite,
        dtype=torch.bfloat16 if args.bf16 else torch.float32,
    )


def _info(args: argparse.Namespace) -> int:
    from ..data.latents import LatentDataset

    dataset = LatentDataset(args.folder, in_memory=False)
    manifest = dataset.manifest
    if args.json:
        print(json.dumps(manifest, indent=1))
        return 0
    shape = " x ".join(map(str, dataset._shards[0][2]))
    classes = sorted(set(dataset.labels.tolist()))
    print(f"{len(dataset)} latents of {shape}, {len(classes)} classes ({classes[0]} to {classes[-1]})")
    print(f"channel means {dataset.mean.min():.3f} to {dataset.mean.max():.3f}, ", end="")
    print(f"standard deviations {dataset.std.min():.3f} to {dataset.std.max():.3f}")
    if manifest is not None:
        print(f"tokenizer {manifest['tokenizer']}, data {manifest['data']}")
    return 0

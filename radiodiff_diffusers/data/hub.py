"""Data sets by name or folder, and to and from the Hugging Face Hub.

    data = open_dataset("RadioMapSeer", "train")                      # a folder of any kind that is known
    data = open_dataset("you/radio-maps", "test", streaming=True)     # a data set on the Hub, read as it comes
    write_parquet({"train": data}, "radio-maps-parquet")              # a folder that can be pushed, or read as it is
    push_to_hub("radio-maps-parquet", "you/radio-maps")

Only a name that is no folder touches the network, and only then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..scene import RadioMap, Scene
from .hub_rows import map_pair, row_maker
from .kinds import find_kind
from .plane_cache import PlaneCache

if TYPE_CHECKING:
    import datasets

RAY_CHANNELS = ("visibility", "obstruction", "detour_loss", "detour_turn")  # what `cache` keeps unless told otherwise
ROW_GROUP = 100  # rows that are in memory at a time, when writing and when streaming
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_OURS = ("data", "runs")  # where recipes keep things: a name mistyped there is not asked of the Hub
# the Hub's customary names of splits
_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


# Opening -------------------------------------------------------------------------------------------------------------


def open_dataset(
    source: str | Path,
    split: str = "train",
    *,
    streaming: bool = False,
    cache: str | Path | None = None,
    cache_channels: Sequence[str] = RAY_CHANNELS,
    **options: Any,
) -> Any:
    """Any data set of radio maps: `len`, `[i] -> (Scene, RadioMap)`; or a stream of them. Spectrogram folders give
    images.

    Args:
        source (`str` or `Path`): a folder (RadioMapSeer or what `radiodiff simulate` wrote, the ICASSP 2025 set or
            what `radiodiff data arrange` made of it, Parquet shards, folders of spectrograms), a name on the Hub, or
            `"radiomapseer"`, `"simulated"`, `"icassp2025"` with the option `root`.
        split (`str`, defaults to `"train"`): `"train"`, `"val"`, `"test"` or `"all"`.
        streaming (`bool`): read rows in order as they come; for Parquet and Hub data sets. Takes `shuffle_buffer` and
            `seed`.
        cache (folder, *optional*): keeps `cache_channels` there, computed once. See `PlaneCache`.
        **options: passed to `RadioMapSeer`, `ICASSP2025`, `ArrangedIndoor`, `MicroDopplerFolder` or, for the Hub, to
            `datasets.load_dataset`.
    """
    if str(source) in {"radiomapseer", "simulated", "icassp2025"} and not Path(source).is_dir():
        if "root" not in options:
            raise ValueError(f"data set {str(source)!r} needs the option root: the folder it lies in")
        source = options.pop("root")
    kept = None if cache is None else PlaneCache(cache, tuple(cache_channels))
    if is_packed(source):
        refused = sorted(set(options) & file_options())
        if refused:
            raise ValueError(
                f"{source} is a Parquet or Hub data set, which is as it was exported: leave out the option "
                f"{refused[0]!r}, which is for folders of files"
            )
    if not Path(source).is_dir():
        return _open_hub(_hub_name(source), split, streaming, kept, options)
    kind = find_kind(source)
    if kind == "parquet":
        return _open_parquet(Path(source), split, streaming, kept, options)
    if streaming:
        raise ValueError(f"{source} is a folder of files: leave streaming out, it is read piece by piece as it is")
    if kind == "spectrograms":
        return _open_spectrograms(source, split, options)
    from .icassp2025 import ICASSP2025
    from .icassp2025_arrange import ArrangedIndoor
    from .radiomapseer import RadioMapSeer

    classes = {"radiomapseer": RadioMapSeer, "icassp2025": ICASSP2025, "arranged": ArrangedIndoor}
    try:
        return classes[kind](source, split, cache=kept, **options)
    except TypeError:  # an option that this kind of data set does not have, or a real mistake
        from inspect import signature

        known = [name for name in signature(classes[kind]).parameters if name not in ("root", "split")]
        unknown = sorted(set(options) - set(known))
        if not unknown:
            raise
        raise ValueError(f"{source} ({kind}): unknown option {unknown[0]!r}: it takes {', '.join(known)}") from None


def is_packed(source: str | Path) -> bool:
    """Whether a source is Parquet shards or a name on the Hub, rather than a folder of files."""
    return not Path(source).is_dir() or find_kind(source) == "parquet"


def file_options() -> set[str]:
    """The options that say how a folder of files is read, of any kind; Parquet and Hub data sets have none of them."""
    from inspect import signature

    from .icassp2025 import ICASSP2025
    from .micro_doppler import MicroDopplerFolder
    from .radiomapseer import RadioMapSeer

    names = {name for kind in (RadioMapSeer, ICASSP2025, MicroDopplerFolder) for name in signature(kind).parameters}
    return names - {"root", "split", "seed", "cache"} | {"train_share"}


class HubMaps:
    """(`Scene`, `RadioMap`) of a `datasets.Dataset` whose columns are those of `hub_rows.map_features`."""

    def __init__(self, rows: datasets.Dataset, cache: PlaneCache | None = None) -> None:
        self.rows, self.cache = _undecoded(rows).with_format("arrow"), cache

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = self.rows[int(index)]  # a table of one row: faster than the dictionary that `datasets` makes of it
        values = {name: column[0].as_py() for name, column in zip(row.column_names, row.columns, strict=True)}
        return _decode(values, self.cache)


class StreamedMaps:
    """The same of a `datasets.IterableDataset`: only iteration, in a shuffled order where a buffer was asked for.

    A `torch.utils.data.DataLoader` takes it; several workers share the shards.
    """

    def __init__(self, rows: datasets.IterableDataset, cache: PlaneCache | None = None) -> None:
        from torch.utils.data import IterableDataset

        IterableDataset.register(StreamedMaps)  # a loader asks; to inherit would import torch with this module
        self.rows, self.cache = _undecoded(rows), cache

    def __iter__(self) -> Iterator[tuple[Scene, RadioMap]]:
        for row in self.rows:
            yield _decode(row, self.cache)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle otherwise."""
        self.rows.set_epoch(epoch)


def _decode(row: dict[str, Any], cache: PlaneCache | None) -> tuple[Scene, RadioMap]:
    scene, radio_map = map_pair(row)
    if cache is not None:
        cache.fill(scene)
    return scene, radio_map


def _undecoded(rows: Any) -> Any:
    """Hand out pictures as bytes: we decode them faster, and exactly."""
    from datasets import Image

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def _open_parquet(folder: Path, split: str, streaming: bool, cache: PlaneCache | None, options: dict[str, Any]) -> Any:
    import datasets
    import pyarrow as pa

    files = _parquet_files(folder)
    wanted = _pick_splits(split, list(files), str(folder))
    found = {name: [str(path) for path in files[name]] for name in wanted}
    stream = {key: options.pop(key) for key in ("shuffle_buffer", "seed") if key in options}
    if options:
        raise ValueError(f"{folder} (parquet): unknown option {next(iter(options))!r}")
    try:
        loaded = datasets.load_dataset("parquet", data_files=found, streaming=streaming)
        return _wrap([loaded[name] for name in wanted], streaming, cache, **stream)
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{folder} is damaged: {reason} `radiodiff data check {folder}` names the files") from None


def _open_hub(name: str, split: str, streaming: bool, cache: PlaneCache | None, options: dict[str, Any]) -> Any:
    import datasets

    stream = {key: options.pop(key) for key in ("shuffle_buffer", "seed") if key in options}
    try:
        present = datasets.get_dataset_split_names(
            name, **{k: v for k, v in options.items() if k in ("revision", "token")}
        )
        wanted = _pick_splits(split, present, name)
        parts = [datasets.load_dataset(name, split=one, streaming=streaming, **options) for one in wanted]
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name!r} is no folder here, and could not be read from the Hub: {reason}") from None
    return _wrap(parts, streaming, cache, **stream)


def _wrap(parts: list[Any], streaming: bool, cache: PlaneCache | None, shuffle_buffer: int = 0, seed: int = 0) -> Any:
    import datasets

    rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    if "label" in (rows.features or {}) and "gain" not in rows.features:
        return rows  # spectrograms: `datasets` decodes them
    if not streaming:
        return HubMaps(rows, cache)
    return StreamedMaps(rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows, cache)


def _open_spectrograms(source: str | Path, split: str, options: dict[str, Any]) -> Any:
    from .micro_doppler import MicroDopplerFolder

    options = dict(options)
    fraction, seed = options.pop("train_share", 0.8), options.get("seed", 0)
    data = MicroDopplerFolder(source, **options)
    if split == "all":
        return data
    if split not in ("train", "val"):
        raise ValueError(f"spectrogram folders have the splits train, val and all; not {split!r}")
    return data.split(fraction, seed)[split == "val"]


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        files.setdefault(path.name.split("-")[0].removesuffix(".parquet"), []).append(path)
    return files


def _pick_splits(split: str, present: list[str], where: str) -> list[str]:
    if split == "all":
        return present
    for name in (split, _HUB_SPLITS.get(split, split), {"validation": "val"}.get(split, split)):
        if name in present:
            return [name]
    raise ValueError(f"{where} has no split {split!r}: it has {', '.join(present)}")


def _hub_name(source: str | Path) -> str:
    name = str(source)
    above, inside, _ = name.partition("/")
    if Path(name).is_file():
        raise ValueError(f"{name} is a file: expected a folder, or the name of a data set on the Hub")
    if above and inside and (above in _OURS or Path(above).is_dir()):
        raise ValueError(f"{name}: no such folder (nor asked for on the Hub, for {above}/ is a place of yours)")
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{name}: no such folder, and no name of a data set on the Hub either (those read owner/name)"
        )
    return name


# Writing -------------------------------------------------------------------------------------------------------------


def write_parquet(
    splits: dict[str, Any],
    folder: str | Path,
    *,
    rows_per_shard: int = 2000,
    title: str | None = None,
    description: str = "",
    licence: str | None = None,
    progress: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> Path:
    """Write data sets as Parquet shards with a card, ready to be pushed to the Hub; only a hundred rows are in memory.

    Args:
        splits: split name -> data set (`RadioMapSeer`, `ICASSP2025`, `MicroDopplerFolder` ... or any sequence of
            (`Scene`, `RadioMap`)). Names are letters, digits and underscores.
        folder: new or empty.
        rows_per_shard (`int`, defaults to 2000): maps a file.
        title, description, licence: for the card. Say whose data it is and on what terms: nothing is assumed.
        progress: wraps the row numbers and their count, for a progress bar.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    if not splits or any(len(data) == 0 for data in splits.values()):
        raise ValueError("there is nothing to write: every split needs at least one sample")
    splits = _readable_names(splits)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, data in splits.items():
        make_row, features = row_maker(data)
        schema = features.arrow_schema
        indices = iter(progress(range(len(data)), len(data)) if progress else range(len(data)))
        shards = -(-len(data) // rows_per_shard)
        for shard, part in enumerate(np.array_split(np.arange(len(data)), shards)):
            path = folder / "data" / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            unfinished = path.with_suffix(".tmp")
            with pq.ParquetWriter(unfinished, schema) as writer:
                for start in range(0, len(part), ROW_GROUP):
                    rows = [make_row(next(indices)) for _ in part[start : start + ROW_GROUP]]
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            unfinished.replace(path)
        counts[name] = len(data)
        next(indices, None)  # lets the progress bar finish
    _write_card(folder, counts, title or folder.name, description, licence)
    return folder


def _readable_names(splits: dict[str, Any]) -> dict[str, Any]:
    """The splits under names that `datasets` and the shards' file names allow."""
    for name in splits:
        if name == "all" or not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"no split of Parquet shards can be called {name!r}: "
                + ("all means all splits where they are read" if name == "all" else "use letters, digits and _")
            )
    named = {_HUB_SPLITS.get(name, name): data for name, data in splits.items()}
    if len(named) < len(splits):
        raise ValueError(f"the splits {', '.join(splits)} have one name twice (val is written as validation)")
    return named


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Upload a folder that `write_parquet` made; returns its address. Log in first (`hf auth login`)."""
    from huggingface_hub import HfApi

    if not (Path(folder) / "README.md").is_file() or find_kind(folder) != "parquet":
        raise ValueError(f"{folder} is no folder of Parquet shards with a card: make one with write_parquet")
    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=str(folder))
    return str(address)


def to_datasets(data: Any, cache_dir: str | Path | None = None) -> datasets.Dataset:
    """A `datasets.Dataset` with the columns of `hub_rows`, written to its cache folder row by row."""
    from datasets import Dataset

    make_row, features = row_maker(data)

    def rows(indices: list[int]) -> Iterator[dict[str, Any]]:
        for index in indices:
            yield make_row(index)

    where = None if cache_dir is None else str(cache_dir)
    return Dataset.from_generator(
        rows, features=features, cache_dir=where, gen_kwargs={"indices": list(range(len(data)))}
    )


def _write_card(folder: Path, counts: dict[str, int], title: str, description: str, licence: str | None) -> None:
    total = sum(counts.values())
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    size = next((text for limit, text in sizes if total < limit), "n>1M")
    head = {
        "pretty_name": title,
        **({"license": licence} if licence else {}),
        "tags": ["radio-map", "radiodiff_diffusers"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in counts],
            }
        ],
    }
    table = "\n".join(f"| {name} | {count} |" for name, count in counts.items())
    text = f"""---
{json.dumps(head, indent=1)}
---

# {title}

{description}

| split | rows |
|---|---|
{table}

One row is one map. To read it as scenes and radio maps:

```python
from radiodiff_diffusers.data.hub import open_dataset

scene, radio_map = open_dataset("{folder.name}", "{next(iter(counts))}")[0]
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")

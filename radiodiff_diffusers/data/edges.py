"""Edge maps of a data set: seven detectors, the set's folders kept or image/edge pairs as the training recipe wants.

    from radiodiff_diffusers.data.edges import EdgeOptions, make_edges
    result = make_edges("RadioMapSeer/gain/DPM", "edges", EdgeOptions("canny", low=30, high=90), layout="pairs")

Every detector answers on a fixed scale (gray levels a pixel, 0 to 255), never stretched image by image, so that a
faint edge is faint in every map. Files appear whole or not at all; started again, the work goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..reports.parallel import read_gray, run_parallel

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
LAYOUTS = ("preserve", "pairs")
MANIFEST, FAILURES = "edges.json", "failures.txt"
CHUNK = 32


@dataclass(frozen=True)
class EdgeOptions:
    """How edges are found.

    Args:
        method (`str`, defaults to `"canny"`): one of `METHODS`.
        low, high (`float`, *optional*): for canny its two thresholds (50 and 150); for contour the two gray levels
            whose lines are drawn (64 and 128); for the others an answer below `low` becomes 0, one of `high` or more
            255, linear between (0 and 255, for ridge 0 and 64).
        blur (`float`, defaults to 0): sigma in pixels of a Gaussian blur before; for ridge its scale (1.5 where 0).
        size (`int`, *optional*): images are brought to this side first; kept as they are where left out.
    """

    method: str = "canny"
    low: float | None = None
    high: float | None = None
    blur: float = 0.0
    size: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown edge detector {self.method!r}: use one of {', '.join(METHODS)}")
        low, high = self.thresholds
        if not 0 <= low < high:
            raise ValueError(f"thresholds must be 0 <= low < high; got low {low:g}, high {high:g}")
        if self.blur < 0 or not np.isfinite(self.blur):
            raise ValueError(f"blur must be 0 or above; got {self.blur:g}")
        if self.size is not None and not 8 <= self.size <= 8192:
            raise ValueError(f"size must be 8 to 8192 pixels; got {self.size}")

    @property
    def thresholds(self) -> tuple[float, float]:
        low, high = {"canny": (50.0, 150.0), "contour": (64.0, 128.0), "ridge": (0.0, 64.0)}.get(
            self.method, (0.0, 255.0)
        )
        return low if self.low is None else float(self.low), high if self.high is None else float(self.high)


# The detectors: (gray float32 plane, options) -> answer in gray levels ----------------------------------------------


def _canny(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    import cv2

    return cv2.Canny(np.rint(gray).astype(np.uint8), *options.thresholds).astype(np.float32)


def _kernel_magnitude(gray: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
    import cv2

    x = cv2.filter2D(gray, cv2.CV_32F, horizontal, borderType=cv2.BORDER_REPLICATE)
    y = cv2.filter2D(gray, cv2.CV_32F, np.ascontiguousarray(horizontal.T), borderType=cv2.BORDER_REPLICATE)
    return cv2.magnitude(x, y)


def _sobel(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    # The weights of one side add up to 1: a step of 255 answers 255.
    return _kernel_magnitude(gray, np.float32([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4)


def _prewitt(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    return _kernel_magnitude(gray, np.float32([[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]]) / 3)


def _gradient(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    """Central differences, two pixels apart and not halved: the change across a pixel."""
    return _kernel_magnitude(gray, np.float32([[0, 0, 0], [-1, 0, 1], [0, 0, 0]]))


def _laplacian(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    import cv2

    return np.abs(cv2.Laplacian(gray, cv2.CV_32F, ksize=1, borderType=cv2.BORDER_REPLICATE))


def _contour(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    """Lines of equal gain: the pixels above a level that touch one that is not, for both levels."""
    import cv2

    lines = np.zeros(gray.shape, bool)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for level in options.thresholds:
        above = (gray > level).astype(np.uint8)
        inner = cv2.erode(above, cross, borderType=cv2.BORDER_CONSTANT, borderValue=1)
        lines |= above > inner
    return lines * np.float32(255)


def _ridge(gray: np.ndarray, options: EdgeOptions) -> np.ndarray:
    """Bright lines: how far the gray levels bend down across them (the Hessian's lower eigenvalue, Lindeberg 1998)."""
    import cv2

    sigma = options.blur or 1.5
    smooth = gray if options.blur else cv2.GaussianBlur(gray, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    border = cv2.BORDER_REPLICATE
    xx = cv2.filter2D(smooth, cv2.CV_32F, np.float32([[1, -2, 1]]), borderType=border)
    yy = cv2.filter2D(smooth, cv2.CV_32F, np.float32([[1], [-2], [1]]), borderType=border)
    xy = cv2.filter2D(smooth, cv2.CV_32F, np.float32([[1, 0, -1], [0, 0, 0], [-1, 0, 1]]) / 4, borderType=border)
    lower = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return np.maximum(-lower, 0) * np.float32(sigma**2)


METHODS: dict[str, Callable[[np.ndarray, EdgeOptions], np.ndarray]] = {
    "canny": _canny,
    "sobel": _sobel,
    "laplacian": _laplacian,
    "prewitt": _prewitt,
    "gradient": _gradient,
    "contour": _contour,
    "ridge": _ridge,
}


def edge_map(gray: np.ndarray, options: EdgeOptions | None = None) -> np.ndarray:
    """The edges of one (height, width) image of gray levels, as uint8."""
    import cv2

    options = options or EdgeOptions()
    if gray.ndim != 2:
        raise ValueError(f"an image must be one (height, width) plane; got shape {gray.shape}")
    plane = resize(gray, options.size).astype(np.float32)
    if options.blur:
        plane = cv2.GaussianBlur(plane, (0, 0), options.blur, borderType=cv2.BORDER_REPLICATE)
    answer = METHODS[options.method](plane, options)
    if options.method not in {"canny", "contour"}:
        low, high = options.thresholds
        answer = np.where(answer < low, 0, (answer - low) * np.float32(255 / (high - low)))
    return np.clip(np.rint(answer), 0, 255).astype(np.uint8)


def resize(gray: np.ndarray, size: int | None) -> np.ndarray:
    import cv2

    if size is None or gray.shape == (size, size):
        return gray
    shrinks = size < min(gray.shape)
    return cv2.resize(gray, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


# A whole data set --------------------------------------------------------------------------------------------------


@dataclass
class EdgeResult:
    """What happened: how many maps were written now, were there already, and which images failed with the reason."""

    written: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    edge_share: list[float] = field(default_factory=list)
    output: Path | None = None


def find_images(root: str | Path, include: str = "**/*") -> list[Path]:
    """The images below `root` that match the pattern, as relative paths."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    found = sorted(p.relative_to(root) for p in root.glob(include) if p.suffix.lower() in PICTURES and p.is_file())
    if not found:
        raise ValueError(f"{root} holds no image matching {include!r} ({', '.join(sorted(PICTURES))})")
    return found


def flat_names(images: list[Path]) -> dict[Path, str]:
    """A PNG name for each image in one flat folder: its own, with its folders before it where names repeat."""
    repeated = Counter(path.stem for path in images)
    return {p: f"{p.stem if repeated[p.stem] == 1 else '_'.join((*p.parts[:-1], p.stem))}.png" for p in images}


def split_by_map(images: list[Path], shares: tuple[float, ...], seed: int = 0) -> dict[Path, str]:
    """train, val and test for each image; all of one map (the name before the first underscore) go to the same."""
    names = ("train", "val", "test")
    if not 2 <= len(shares) <= 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"a split is two or three shares that add up to 1, as 0.8,0.1,0.1; got {shares}")
    maps = sorted({path.stem.split("_")[0] for path in images})
    order = np.random.default_rng(seed).permutation(len(maps))
    ends = np.rint(np.cumsum(shares) * len(maps))
    part = {maps[m]: names[int(np.searchsorted(ends, place, side="right"))] for place, m in enumerate(order)}
    return {path: part[path.stem.split("_")[0]] for path in images}


@dataclass(frozen=True)
class _Chunk:
    root: Path
    options: EdgeOptions
    # (image, where its edges go, where the image itself goes or None)
    files: tuple[tuple[Path, Path, Path | None], ...]
    retries: int


def make_edges(
    root: str | Path,
    output: str | Path,
    options: EdgeOptions | None = None,
    layout: str = "preserve",
    split: tuple[float, ...] | None = None,
    include: str = "**/*",
    workers: int | None = None,
    retries: int = 2,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> EdgeResult:
    """Write the edge map of every image below `root`.

    Args:
        root, output (path): where images are, and where edge maps go.
        options (`EdgeOptions`, *optional*): the detector.
        layout (`str`): `"preserve"` keeps the folders; `"pairs"` writes flat `image/` and `edge/` of equal names.
        split (*optional*): with pairs, shares of train, val (and test), by map, each with its own two folders.
        include (`str`): which files, as a glob pattern below `root`.
        retries (`int`): how often an image that cannot be read or written is tried again before it counts as failed.
        overwrite (`bool`): make maps again that are there already.
    """
    options = options or EdgeOptions()
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: use one of {', '.join(LAYOUTS)}")
    if split is not None and layout != "pairs":
        raise ValueError("a split needs the layout of pairs: use layout='pairs' or leave the split out")
    root, output = Path(root), Path(output)
    images = [p for p in find_images(root, include) if not _is_inside(root / p, output)]
    _check_manifest(output, options, layout, split, seed, overwrite)
    places = _places(images, output, layout, split, seed)
    todo = [(p, *places[p]) for p in images if overwrite or not all(q is None or q.exists() for q in places[p])]
    result = EdgeResult(skipped=len(images) - len(todo), output=output)
    for folder in sorted({q.parent for _, *targets in todo for q in targets if q is not None}):
        folder.mkdir(parents=True, exist_ok=True)
    chunks = [_Chunk(root, options, tuple(todo[i : i + CHUNK]), retries) for i in range(0, len(todo), CHUNK)]
    sizes = [len(chunk.files) for chunk in chunks]
    for shares, failures in run_parallel(_work, chunks, workers, "edges", sizes, progress):
        result.edge_share += shares
        result.failures += failures
    result.written = len(result.edge_share)
    _write_failures(output, result.failures)
    return result


def _places(images: list[Path], output: Path, layout: str, split, seed: int) -> dict[Path, tuple[Path, Path | None]]:
    if layout == "preserve":
        # Two images that differ only in their suffix must not overwrite each other.
        same = Counter(p.with_suffix("") for p in images)
        return {
            p: (output / (p.with_suffix(".png") if same[p.with_suffix("")] == 1 else f"{p}.png"), None) for p in images
        }
    names = flat_names(images)
    parts = split_by_map(images, split, seed) if split else dict.fromkeys(images, "")
    return {p: (output / parts[p] / "edge" / names[p], output / parts[p] / "image" / names[p]) for p in images}


def _work(chunk: _Chunk) -> tuple[list[float], list[tuple[str, str]]]:
    shares, failures = [], []
    for image, edge_path, image_path in chunk.files:
        for attempt in range(chunk.retries + 1):
            try:
                gray = read_gray(chunk.root / image)
                edges = edge_map(gray, chunk.options)
                if image_path is not None:
                    _write_png(image_path, resize(gray, chunk.options.size))
                _write_png(edge_path, edges)
                shares.append(float((edges > 0).mean()))
                break
            except (OSError, ValueError) as error:
                if attempt == chunk.retries:
                    failures.append((image.as_posix(), str(error)))
    return shares, failures


def _write_png(path: Path, plane: np.ndarray) -> None:
    import cv2

    done, data = cv2.imencode(".png", plane, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise OSError(f"{path} could not be encoded")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_manifest(output: Path, options: EdgeOptions, layout: str, split, seed: int, overwrite: bool) -> None:
    """Edge maps of two kinds in one folder would never be told apart again."""
    wanted = {**asdict(options), "layout": layout, "split": list(split) if split else None, "seed": seed}
    path = output / MANIFEST
    if path.is_file() and not overwrite:
        try:
            made = json.loads(path.read_text())
        except ValueError:
            made = None
        if made is not None and made != wanted:
            changed = ", ".join(f"{k} {made.get(k)!r} not {v!r}" for k, v in wanted.items() if made.get(k) != v)
            raise ValueError(
                f"{output} holds edge maps made with {changed}: choose another output folder, or overwrite them"
            )
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def _write_failures(output: Path, failures: list[tuple[str, str]]) -> None:
    path = output / FAILURES
    if failures:
        path.write_text("".join(f"{image}\t{reason}\n" for image, reason in failures))
    else:
        path.unlink(missing_ok=True)


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents

"""How every figure here looks, and the few drawings they share: gain maps in dB, error maps, a scale bar.

Figures are plain `matplotlib.figure.Figure` objects on the Agg canvas: no pyplot, so no global state, no window, and
safe in worker processes. Colours are Okabe and Ito's eight, which all kinds of colour vision tell apart.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..scene import GainScale

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GRAY, BLACK = COLOURS
GAIN_COLOURS = "viridis"
SPREAD_COLOURS = "cividis"
ERROR_COLOURS = "RdBu_r"
DPI = 110

RC = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fancybox": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
}


@contextmanager
def drawing(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, title: str | None = None, **grid: Any
):
    """A figure and its axes, always a (rows, columns) array, in the house style. Draw and `save` inside the `with`."""
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**RC, "axes.prop_cycle": cycler(color=COLOURS)}):
        figure = Figure(figsize=size or (4.6 * columns, 3.2 * rows), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        yield figure, figure.subplots(rows, columns, squeeze=False, **grid)


def save(figure: Any, path: str | Path) -> Path:
    """Write the figure as PNG, whole or not at all, so that a page never shows half a picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", metadata={"Software": None})
    partial.replace(path)
    return path


# Axes --------------------------------------------------------------------------------------------------------------


def label(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def short_number(value: float, _position: int | None = None) -> str:
    """50000 -> 50k, 1500000 -> 1.5M; what step axes print."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"


def step_axis(axes: Any, text: str = "training step") -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(short_number))
    axes.set_xlabel(text)


def count_axis(axes: Any, which: str = "y") -> None:
    """Whole numbers only: there is no half map."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(short_number))
    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def percent_axis(axes: Any, which: str = "y") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(nbins=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def pick_scale(axes: Any, values: np.ndarray) -> None:
    """Logarithmic where positive values span a factor of 30, symmetric-logarithmic where signed ones span far more."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    magnitude = np.abs(finite[finite != 0])
    if magnitude.size < 2:
        return
    low, small, high = np.quantile(magnitude, [0.02, 0.1, 1.0])
    if finite.min() > 0 and high > 30 * low:
        axes.set_yscale("log")
    elif finite.min() <= 0 and high > 1000 * small:
        axes.set_yscale("symlog", linthresh=small)
        _few_ticks(axes, finite, small)


def _few_ticks(axes: Any, values: np.ndarray, threshold: float) -> None:
    """On a symmetric-logarithmic axis: zero and every second or third power of ten, so that none is on another."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    first, last = int(np.ceil(np.log10(threshold))), int(np.ceil(np.log10(np.abs(values).max())))
    step = max(1, -(-(last - first) // 3))
    powers = [10.0**k for k in range(first + 1, last + 1, step)]
    ticks = [*(-p for p in powers[::-1] if values.min() <= -p), 0.0, *(p for p in powers if p <= 2 * values.max())]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(short_number))


def log_axis(axes: Any, which: str = "x") -> None:
    """A logarithmic axis with ticks at 1, 2 and 5, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(short_number))
    axis.set_minor_formatter(NullFormatter())


def whole_bins(values: np.ndarray, most: int = 30) -> np.ndarray:
    """Histogram edges for whole numbers: each bin holds the same number of them, at most `most` bins."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    step = max(1, -(-(high - low + 1) // most))
    count = max(-(-(high - low + 1) // step), 5)
    return np.arange(low, low + (count + 1) * step, step) - 0.5


def share_below(axes: Any, values: np.ndarray, **line: Any) -> None:
    """The empirical distribution: which share of the values lies at or below each value."""
    values = np.sort(values)
    axes.step(values, np.arange(1, len(values) + 1) / max(len(values), 1), where="post", **line)


def error_limit(*errors_db: np.ndarray) -> float:
    """A round dB limit for error maps: what 98 % of the errors do not exceed, at least 2 dB."""
    magnitude = np.concatenate([np.abs(e[np.isfinite(e)]).ravel() for e in errors_db])
    limit = max(float(np.quantile(magnitude, 0.98)) if magnitude.size else 0.0, 2.0)
    return next(float(step) for step in (2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 255, np.inf) if limit <= step)


def message(axes: Any, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GRAY, transform=axes.transAxes, wrap=True)


# Maps --------------------------------------------------------------------------------------------------------------


def bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def gain_map(
    axes: Any,
    gain_db: np.ndarray,
    scale: GainScale = GainScale.RADIOMAPSEER,
    title: str = "",
    buildings: np.ndarray | None = None,
    transmitter: tuple[float, float] | None = None,
    metres_per_pixel: float | None = None,
    colorbar: bool = True,
) -> Any:
    """A gain map in dB from the noise floor up; buildings gray, the transmitter a white-rimmed cross."""
    shown = np.ma.masked_where(buildings, gain_db) if buildings is not None else gain_db
    low, high = gain_limits(scale)
    image = axes.imshow(shown, cmap=GAIN_COLOURS, vmin=low, vmax=high)
    if buildings is not None:
        axes.set_facecolor("#B8B8B8")
    finish_map(axes, title, gain_db.shape, transmitter, metres_per_pixel)
    if colorbar:
        axes.figure.colorbar(image, ax=axes, label="gain [dB]", fraction=0.046, pad=0.02)
    return image


def gain_limits(scale: GainScale) -> tuple[float, float]:
    """The dB a gain map's colours span: what a receiver hears."""
    low = max(scale.noise_floor_db, min(scale.db_at_0, scale.db_at_255))
    return low, max(scale.db_at_0, scale.db_at_255)


def error_map(
    axes: Any,
    error_db: np.ndarray,
    limit_db: float = 20.0,
    title: str = "",
    metres_per_pixel: float | None = None,
    colorbar: bool = True,
) -> Any:
    """Prediction minus truth in dB, white where right, red where too strong, blue where too weak."""
    image = axes.imshow(error_db, cmap=ERROR_COLOURS, vmin=-limit_db, vmax=limit_db)
    finish_map(axes, title, error_db.shape, None, metres_per_pixel, on_light=True)
    if colorbar:
        axes.figure.colorbar(image, ax=axes, label="error [dB]", fraction=0.046, pad=0.02, extend="both")
    return image


def finish_map(
    axes: Any,
    title: str,
    shape: tuple[int, int],
    transmitter: tuple[float, float] | None = None,
    metres_per_pixel: float | None = None,
    on_light: bool = False,
) -> None:
    bare(axes)
    axes.set_title(title)
    if transmitter is not None:
        axes.plot(*transmitter, marker="P", markersize=9, color=ORANGE, markeredgecolor="white", markeredgewidth=1.2)
    if metres_per_pixel:
        scale_bar(axes, shape, metres_per_pixel, on_light)


def scale_bar(axes: Any, shape: tuple[int, int], metres_per_pixel: float, on_light: bool = False) -> None:
    """A bar of a round length, about a fifth of the width, in the lower left corner."""
    from matplotlib.patheffects import withStroke

    height, width = shape
    metres = nice_length(width * metres_per_pixel / 5)
    length, x, y = metres / metres_per_pixel, width * 0.04, height * 0.95
    ink, rim = ("black", "white") if on_light else ("white", "black")
    outline = [withStroke(linewidth=4.5, foreground=rim, alpha=0.6)]
    axes.plot([x, x + length], [y, y], color=ink, linewidth=2.5, solid_capstyle="butt", path_effects=outline)
    outline = [withStroke(linewidth=2, foreground=rim, alpha=0.6)]
    where = {"ha": "center", "va": "bottom", "fontsize": 8}
    axes.text(x + length / 2, y - height * 0.015, f"{metres:g} m", color=ink, path_effects=outline, **where)


def nice_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * 1.0001))

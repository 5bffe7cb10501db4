"""Boxes, arrows and an icicle, as SVG text: diagrams that need no library and no network to be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

FONT = "font-family='system-ui, DejaVu Sans, sans-serif'"
INK, SOFT, LINE = "#1b1f24", "#5c6670", "#8a949e"
FILLS = {
    "blue": "#d6e6f2",
    "green": "#d9eee6",
    "orange": "#f9e3d5",
    "pink": "#f4e3ec",
    "gray": "#eceff2",
    "yellow": "#f8ecd0",
}


@dataclass
class Diagram:
    """A drawing that grows with what is put into it. Coordinates are pixels from the top left."""

    elements: list[str] = field(default_factory=list)
    width: float = 0
    height: float = 0

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 12,
        colour: str = INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        weight = " font-weight='600'" if bold else ""
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{colour}' text-anchor='{anchor}' "
            f"{FONT}{weight}>{escape(text)}</text>"
        )
        reach = {"start": x + text_width(text, size), "middle": x + text_width(text, size) / 2, "end": x}[anchor]
        self._reach(reach, y + 4)

    def box(
        self, x: float, y: float, w: float, h: float, title: str, notes: tuple[str, ...] = (), fill: str = "blue"
    ) -> None:
        """A rounded box with a bold title and smaller lines below it, all cut to the box's width."""
        colour = FILLS.get(fill, fill)
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='{min(5, h / 4):g}' "
            f"fill='{colour}' stroke='{LINE}' "
            "stroke-width='1'>"
            f"<title>{escape(' | '.join((title, *notes)))}</title></rect>"
        )
        lines = [(title, 12, INK, True), *((note, 10, SOFT, False) for note in notes)]
        total = 15 * len(lines)
        for i, (text, size, ink, bold) in enumerate(lines):
            self.text(
                x + w / 2, y + h / 2 - total / 2 + 15 * i + 11, fit(text, w - 8, size), size, ink, "middle", bold
            )
        self._reach(x + w + 1, y + h + 1)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, text: str = "", dashed: bool = False) -> None:
        dash = " stroke-dasharray='4 3'" if dashed else ""
        self.elements.append(
            f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{SOFT}' stroke-width='1.4'{dash} "
            "marker-end='url(#head)'/>"
        )
        if text:
            level = abs(y1 - y2) < 1
            x, y = ((x1 + x2) / 2, y1 - 5) if level else ((x1 + x2) / 2 + 6, (y1 + y2) / 2 + 4)
            self.text(x, y, text, 10, SOFT, "middle" if level else "start")
        self._reach(max(x1, x2) + 4, max(y1, y2) + 4)

    def path(self, points: list[tuple[float, float]], dashed: bool = False) -> None:
        """A line round corners, with an arrow head at its end."""
        dash = " stroke-dasharray='4 3'" if dashed else ""
        places = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.elements.append(
            f"<polyline points='{places}' fill='none' stroke='{SOFT}' stroke-width='1.4'{dash} "
            "marker-end='url(#head)'/>"
        )
        for x, y in points:
            self._reach(x + 4, y + 4)

    def write(self, path: str | Path, title: str) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = self.width + 10, self.height + 10
        head = (
            "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' "
            "orient='auto'>"
            f"<path d='M0,0.5 L7,4 L0,7.5 z' fill='{SOFT}'/></marker></defs>"
        )
        path.write_text(
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' "
            f"height='{height:g}' "
            f"role='img'><title>{escape(title)}</title>{head}\n<rect width='100%' height='100%' fill='white'/>\n"
            + "\n".join(self.elements)
            + "\n</svg>\n",
            encoding="utf-8",
        )
        return path


def text_width(text: str, size: int) -> float:
    """About how wide a text is; sans-serif letters take 0.56 of their height on average."""
    return 0.56 * size * len(text)


def fit(text: str, width: float, size: int) -> str:
    """The text, or its beginning and end where it is too wide: of a module's name the last word tells most."""
    room = int(width / (0.56 * size))
    if len(text) <= room:
        return text
    end = max(room - 2, 1) // 2
    return text[: max(room - 2 - end, 1)] + ".." + (text[-end:] if end else "")

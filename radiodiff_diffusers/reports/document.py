"""One document, two files: Markdown beside its pictures, and one HTML file that carries them and needs no network."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CSS = """
:root { --ink: #1b1f24; --soft: #5c6670; --line: #dde2e7; --paper: #ffffff; --panel: #f5f7f9; --accent: #0072B2;
        --bad: #B3261E; --warn: #8A5A00; --good: #1B6E4B; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b42; --paper: #16191c;
        --panel: #1f2428; --accent: #56B4E9; --bad: #F2938C; --warn: #E69F00; --good: #6FCF9F; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .2rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
nav { font-size: .9rem; color: var(--soft); }
a { color: var(--accent); }
nav a { display: inline-block; text-decoration: none; margin-right: 1rem; }
h1, h2, h3, p, li, .note, figcaption { overflow-wrap: anywhere; }
p, li { max-width: 68ch; }
code, pre { font: .88em/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
td.long { min-width: 16rem; } td:first-child { min-width: 7.5rem; }
figure { margin: 1rem 0 1.6rem; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 80ch; margin-top: .3rem; }
figure img, figure svg { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
       border-radius: 6px; }
@media (max-width: 56rem) { figure img, figure svg { max-width: min(56rem, 250vw); } }
.note { border-left: 4px solid var(--soft); background: var(--panel); padding: .5rem .9rem; margin: .5rem 0;
        max-width: 76ch; border-radius: 0 6px 6px 0; }
.bad { border-color: var(--bad); } .warn { border-color: var(--warn); } .good { border-color: var(--good); }
.note b { margin-right: .4rem; } .bad b { color: var(--bad); } .warn b { color: var(--warn); }
.good b { color: var(--good); }
"""
NOTE_WORDS = {"bad": "Wrong:", "warn": "Look:", "good": "Good:", "info": "Note:"}


@dataclass
class Document:
    """Collects headings, text, notes, tables and figures in order, then writes them as Markdown and as HTML.

    Text may use `code`, **bold** and [links](address), nothing else of Markdown; everything is escaped.
    """

    title: str
    blocks: list[tuple] = field(default_factory=list)
    refresh_seconds: int | None = None

    def heading(self, text: str, level: int = 2) -> None:
        self.blocks.append(("heading", text, level))

    def text(self, text: str) -> None:
        self.blocks.append(("text", text))

    def items(self, lines: Iterable[str]) -> None:
        self.blocks.append(("items", list(lines)))

    def note(self, kind: str, text: str) -> None:
        """`kind` is bad, warn, good or info."""
        self.blocks.append(("note", kind, text))

    def code(self, text: str) -> None:
        self.blocks.append(("code", text))

    def table(self, header: Sequence[str], rows: Iterable[Sequence]) -> None:
        self.blocks.append(("table", list(header), [[format_cell(cell) for cell in row] for row in rows]))

    def figure(self, path: str | Path, caption: str) -> None:
        """A PNG, JPEG or SVG file; the HTML carries it inside."""
        self.blocks.append(("figure", Path(path), caption))

    def write(self, folder: str | Path, name: str = "report") -> tuple[Path, Path]:
        """`name`.md and `name`.html in `folder`, replaced in place; returns both paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for suffix, content in ((".md", self.to_markdown(folder)), (".html", self.to_html())):
            path = folder / f"{name}{suffix}"
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(content, encoding="utf-8")
            partial.replace(path)
            written.append(path)
        return written[0], written[1]

    # Markdown ------------------------------------------------------------------------------------------------------

    def to_markdown(self, folder: Path) -> str:
        return "\n\n".join([f"# {self.title}", *(self._markdown_block(block, folder) for block in self.blocks)]) + "\n"

    def _markdown_block(self, block: tuple, folder: Path) -> str:
        kind, *rest = block
        if kind == "heading":
            return f"{'#' * rest[1]} {rest[0]}"
        if kind == "items":
            return "\n".join(f"- {line}" for line in rest[0])
        if kind == "note":
            return f"> **{NOTE_WORDS[rest[0]]}** {rest[1]}"
        if kind == "code":
            return f"```\n{rest[0]}\n```"
        if kind == "table":
            lines = [rest[0], ["---"] * len(rest[0]), *rest[1]]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        if kind == "figure":
            return f"![{rest[1]}]({_relative(rest[0], folder)})\n\n{rest[1]}"
        return rest[0]

    # HTML ----------------------------------------------------------------------------------------------------------

    def to_html(self) -> str:
        body = "\n".join(self._html_block(block) for block in self.blocks)
        chapters = [block[1] for block in self.blocks if block[0] == "heading" and block[2] == 2]
        links = "".join(f'<a href="#{_slug(text)}">{_inline(text)}</a>' for text in chapters)
        refresh = f'<meta http-equiv="refresh" content="{self.refresh_seconds}">' if self.refresh_seconds else ""
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{refresh}<title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
            f"<body><h1>{title}</h1><nav>{links}</nav>\n{body}\n</body></html>\n"
        )

    def _html_block(self, block: tuple) -> str:
        kind, *rest = block
        if kind == "heading":
            return f'<h{rest[1]} id="{_slug(rest[0])}">{_inline(rest[0])}</h{rest[1]}>'
        if kind == "items":
            return "<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in rest[0]) + "</ul>"
        if kind == "note":
            return f'<div class="note {rest[0]}"><b>{NOTE_WORDS[rest[0]]}</b>{_inline(rest[1])}</div>'
        if kind == "code":
            return f"<pre>{html.escape(rest[0])}</pre>"
        if kind == "table":
            kinds = [_column_class(column) for column in zip(*rest[1], strict=True)] or [""] * len(rest[0])
            head = "".join(f"<th{kind}>{_inline(cell)}</th>" for cell, kind in zip(rest[0], kinds, strict=True))
            rows = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rest[1])
            return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
        if kind == "figure":
            picture = _inlined_image(rest[0], rest[1])
            return f'<figure><div class="scroll">{picture}</div><figcaption>{_inline(rest[1])}</figcaption></figure>'
        return f"<p>{_inline(rest[0])}</p>"


def format_cell(value: object) -> str:
    """Numbers with four significant digits, whole numbers with thousands separated, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """1 file, 2 files."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def _column_class(column: Sequence[str]) -> str:
    """Columns of numbers stand at the right, head and all; one word among them makes it a column of text."""
    cells = [cell for cell in column if cell]
    number = re.compile(r"[-+]?([\d,.]+(e[-+]?\d+)?|nan|inf)( ?(%|dB|s|[kMGT]|[kMGT]?(FLOP|B)))?")
    return ' class="number"' if cells and all(number.fullmatch(cell) for cell in cells) else ""


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    return "".join(f"<td{kind or _long(cell)}>{_inline(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))


def _long(cell: str) -> str:
    """Text of several words keeps a width at which it can be read, also on a telephone."""
    return ' class="long"' if len(cell) > 40 else ""


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\(((?!javascript:)[^)\s\"]+)\)", r'<a href="\2">\1</a>', text)


def _inlined_image(path: Path, caption: str) -> str:
    alt = html.escape(caption)
    if path.suffix == ".svg":
        drawing = path.read_text(encoding="utf-8")
        return drawing[drawing.index("<svg") :]
    kind = "jpeg" if path.suffix.lower() in {".jpg", ".jpeg"} else "png"
    return f'<img alt="{alt}" src="data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

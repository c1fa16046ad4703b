"""A report as a neutral document: sections of tables, charts and pictures, written as one HTML page or as Markdown."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from components.evaluation.charts import standalone
from components.evaluation.paper_table import markdown
from components.evaluation.templating import templates
from components.files import write_text

_FOLDED_ROWS = 20
"""A longer table that the page folds is left out of the Markdown, which cannot fold."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings; the first column names the row, the others are figures.

    Attributes:
        folded: shown on demand (on the page).
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    text: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart of `components.evaluation.charts`; on the page two stand side by side, a `wide` one stands alone."""

    title: str
    svg: Markup
    text: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Sheet:
    """A picture in a PNG file."""

    title: str
    file: Path
    text: str = ""


Part = Table | Chart | Sheet


@dataclass(frozen=True)
class Section:
    """A heading, what it says, and its parts."""

    title: str
    text: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        return _slug(self.title)


def _slug(title: str) -> str:
    """An anchor and the beginning of a file's name; never empty, which a title of symbols alone would become."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("λ", "lambda")).strip("-") or "section"


def write_html(file: Path, *, title: str, lead: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """One page with everything in it, atomically."""

    def embedded(sheet: Sheet) -> str:
        return f"data:image/png;base64,{base64.b64encode(sheet.file.read_bytes()).decode()}"

    environment = templates()
    environment.tests["table"] = lambda part: isinstance(part, Table)
    environment.tests["chart"] = lambda part: isinstance(part, Chart)
    page = environment.get_template("document.html.j2").render(
        title=title, lead=lead, facts=list(facts.items()), sections=sections, embedded=embedded
    )
    write_text(file, page)


def write_markdown(file: Path, *, title: str, lead: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """The same as Markdown; its charts, and pictures from elsewhere, lie in a folder of its name beside it."""
    beside = file.with_suffix("")
    lines = [f"# {title}", "", lead, ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text]
        for number, part in enumerate(section.parts):
            lines.append("")
            if isinstance(part, Table):
                lines += [f"**{part.title}**", ""] if part.title else []
                lines += [part.text, ""] if part.text else []
                if part.folded and len(part.rows) > _FOLDED_ROWS:
                    lines.append(f"{len(part.rows)} rows: see the page, or the CSV tables beside it.")
                else:
                    lines.append(markdown(list(part.head), [list(row) for row in part.rows]))
            elif isinstance(part, Chart) and not str(part.svg).startswith("<svg"):
                lines.append(f"{part.title}: nothing was measured.")
            else:
                name = f"{section.anchor}-{number}{'.svg' if isinstance(part, Chart) else '.png'}"
                shown = beside / name
                beside.mkdir(parents=True, exist_ok=True)
                if isinstance(part, Chart):
                    write_text(shown, standalone(part.svg))
                elif part.file.is_relative_to(file.parent):
                    shown = part.file
                else:
                    shutil.copyfile(part.file, shown)
                lines += [part.text, ""] if part.text else []
                lines.append(f"![{part.title}]({shown.relative_to(file.parent).as_posix()})")
    write_text(file, "\n".join(lines).rstrip() + "\n")

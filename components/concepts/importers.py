"""Concepts from elsewhere: a DreamBooth folder of photos, and the CSV of the method's released code.

Nothing is dropped silently: a file or a line that cannot be taken stops the import, and nothing is left behind.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.concepts.paths import read_text
from components.concepts.store import Check, add_concept
from components.concepts.texts import NAME_PATTERN, PLACEHOLDER, STYLE_CLASS_WORD, derive_texts, without_mentions
from components.errors import InvalidInput
from components.settings import ConceptSettings

logger = logging.getLogger(__name__)

CSV_COLUMNS = ("image_path", "prompt", "target_prompt", "base_prompt", "instance_word")
MAXIMUM_CSV_BYTES = 2**20
_PHOTO_OF = re.compile(r"^(?:(?:an?|the)\s+)?(?:(?:photo|picture|image|painting)\s+of\s+)?(?:(?:an?|the)\s+)?", re.I)


def import_concept(
    path: Path,
    root: Path,
    *,
    settings: ConceptSettings,
    class_word: str | None = None,
    name: str | None = None,
    kind: str = "instance",
    texts: Mapping[str, str] | str | None = None,
    check: Check | None = None,
) -> Path:
    """Import `path`, a folder of images or a CSV, as a concept folder below `root`; returns that folder.

    Raises:
        InvalidInput: as `import_folder` and `import_csv`, or `path` is neither.
    """
    if path.is_dir():
        if class_word is None:
            if kind != "style":
                mend = "say what the photos show, e.g. --class-word dog"
                raise InvalidInput("missing", field="class_word", mend=mend)
            class_word = STYLE_CLASS_WORD
        return import_folder(
            path, root, settings=settings, class_word=class_word, name=name, kind=kind, texts=texts, check=check
        )
    if path.suffix.lower() == ".csv":
        if texts is not None:
            raise InvalidInput("a CSV brings its own texts", field="texts", mend="edit the CSV")
        if kind == "style":
            class_word = STYLE_CLASS_WORD
        return import_csv(path, root, settings=settings, class_word=class_word, name=name, check=check)
    raise InvalidInput("neither a folder of images nor a CSV", file=path, mend="give the one or the other")


def import_folder(
    folder: Path,
    root: Path,
    *,
    settings: ConceptSettings,
    class_word: str,
    name: str | None = None,
    kind: str = "instance",
    texts: Mapping[str, str] | str | None = None,
    license: str = "not stated",  # noqa: A002 - the field's name
    check: Check | None = None,
) -> Path:
    """Import a DreamBooth folder: every file in it that is not hidden is an image.

    Args:
        folder: the images.
        root: the folder of all concepts.
        settings: bounds on the number of images, and the class words of the base.
        class_word: what the photos show.
        name: the concept's name; None: made of the folder's.
        kind: `instance` or `style`.
        texts: one text for all, or file name -> text; None: `store.default_text`.
        license: the images' licence.
        check: has the last word on the finished concept folder.

    Raises:
        InvalidInput: a file that is no image, a folder inside, a text without its image or an image without its text.
    """
    files = [path for path in sorted(folder.iterdir(), key=_natural) if not path.name.startswith(".")]
    for path in files:
        if path.is_dir():
            raise InvalidInput("a folder among the images", file=path, mend="import each folder by itself, or move it")
    chosen: list[str] | None = None
    if isinstance(texts, str):
        chosen = [texts] * len(files)
    elif texts is not None:
        names = {path.name for path in files}
        for unknown in sorted(texts.keys() - names):
            raise InvalidInput(f"a text for {unknown!r}, which is not there", file=folder, field="texts")
        for untold in sorted(names - texts.keys()):
            raise InvalidInput("no text for the image", file=folder / untold, field="texts", mend="describe it too")
        chosen = [texts[path.name] for path in files]
    return add_concept(
        root,
        name or _name_of(folder.resolve().name, folder),
        class_word=class_word,
        images=files,
        settings=settings,
        kind=kind,
        texts=chosen,
        license=license,
        source=f"imported from the folder {folder.resolve().name}",
        check=check,
    )


def import_csv(
    file: Path,
    root: Path,
    *,
    settings: ConceptSettings,
    class_word: str | None = None,
    name: str | None = None,
    check: Check | None = None,
) -> Path:
    """Import the released code's CSV: `image_path, prompt, target_prompt, base_prompt, instance_word`, one concept.

    Image paths are relative to the CSV's folder. `[v]` counts as `[V]`; where a prompt holds neither, its
    `instance_word` (e.g. `sks`) is the identifier. The class word is what the target prompt says besides it. A base
    prompt is kept as `base_text` where it is not the derived one.

    Raises:
        InvalidInput: the line and the column are named.
    """
    rows = _read_csv(file)
    words = {row.class_word for row in rows}
    if class_word is None:
        if len(words) > 1:
            second = next(row for row in rows if row.class_word != rows[0].class_word)
            raise InvalidInput(
                f"{second.class_word!r}, but {rows[0].class_word!r} in line {rows[0].line}",
                file=file,
                field=f"line {second.line}: target_prompt",
                mend="one CSV holds one concept: split it, or settle it with --class-word",
            )
        class_word = rows[0].class_word
    kind = "style" if class_word == STYLE_CLASS_WORD else "instance"
    base_texts: list[str | None] = []
    for row in rows:
        try:
            base = derive_texts(row.prompt, kind=kind, class_word=class_word).base
        except InvalidInput as error:
            if error.field != "text" or kind != "style":
                raise InvalidInput(
                    error.problem, file=file, field=f"line {row.line}: prompt", mend=error.mend
                ) from error
            base = None
        base_texts.append(None if base == row.base_prompt else row.base_prompt)
    return add_concept(
        root,
        name or _name_of(file.stem, file),
        class_word=class_word,
        images=[row.image for row in rows],
        settings=settings,
        kind=kind,
        texts=[row.prompt for row in rows],
        base_texts=base_texts,
        source=f"imported from {file.name}",
        check=check,
    )


@dataclass(frozen=True)
class _CsvRow:
    line: int
    image: Path
    prompt: str
    base_prompt: str
    class_word: str


def _read_csv(file: Path) -> list[_CsvRow]:
    reader = csv.DictReader(io.StringIO(read_text(file, limit=MAXIMUM_CSV_BYTES), newline=""), strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        for column in CSV_COLUMNS:
            if column not in columns:
                mend = f"the columns are {', '.join(CSV_COLUMNS)}"
                raise InvalidInput("the column is missing", file=file, field=column, mend=mend)
        for column in columns:
            if column and column not in CSV_COLUMNS:  # a column without a name is pandas' index
                raise InvalidInput("unknown column", file=file, field=column, mend="remove the column")
        reader.fieldnames = columns
        rows = [_csv_row(file, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InvalidInput(f"not CSV: {error}", file=file, field=f"line {reader.line_num}") from error
    if not rows:
        raise InvalidInput("no line below the head", file=file, mend="write one line per image")
    return rows


def _csv_row(file: Path, line: int, values: Mapping[str | None, str | None]) -> _CsvRow:
    def fail(column: str, problem: str, mend: str) -> InvalidInput:
        return InvalidInput(problem, file=file, field=f"line {line}: {column}", mend=mend)

    cells = {column: (values.get(column) or "").strip() for column in CSV_COLUMNS}
    if None in values:
        raise fail("image_path", "more cells than columns", "quote texts that hold a comma")
    for column in CSV_COLUMNS:
        if not cells[column]:
            raise fail(column, "empty", "fill in the cell")
    image = file.parent / cells["image_path"]
    if Path(cells["image_path"]).is_absolute() or not image.resolve().is_relative_to(file.parent.resolve()):
        mend = "put the image below the CSV's folder and write its path from there"
        raise fail("image_path", f"{cells['image_path']!r} leads out of the CSV's folder", mend)
    if not image.exists():
        mend = f"write the path from {file.parent.name}/"
        raise fail("image_path", f"{cells['image_path']!r} does not exist", mend)
    word = cells["instance_word"]
    target = _with_placeholder(cells["target_prompt"], word)
    class_word = _PHOTO_OF.sub("", without_mentions(target))
    if PLACEHOLDER not in target or not class_word:
        raise fail("target_prompt", f"{cells['target_prompt']!r} is no '[V] <class word>'", "write e.g. [V] dog")
    return _CsvRow(line, image, _with_placeholder(cells["prompt"], word), cells["base_prompt"], class_word)


def _with_placeholder(prompt: str, word: str) -> str:
    """`[v]` as `[V]`; without either, the first `word` that is followed by another word."""
    prompt = re.sub(r"\[v\]", PLACEHOLDER, prompt, flags=re.IGNORECASE)
    if PLACEHOLDER in prompt:
        return prompt
    return re.sub(rf"(?<!\w){re.escape(word)}(?=\s+\w)", PLACEHOLDER, prompt, count=1)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key with 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _name_of(text: str, source: Path) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_-")[:63]
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(f"no name can be made of {text!r}", file=source, field="name", mend="give one with --name")
    return name

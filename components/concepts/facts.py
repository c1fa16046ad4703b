"""The facts about a concept folder, as tables; `validation` judges them.

Pure: files are read, nothing is written, nothing is refused. A fact that cannot be known is None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.concepts import measures
from components.concepts.concept import stray_files
from components.concepts.images import FORMATS, decode, header_problem, read_header
from components.concepts.paths import MAXIMUM_IMAGE_BYTES, read_bytes
from components.concepts.schema import CONCEPT_FILE, FIELDS, METADATA_FILE, Row, read_concept_file, read_metadata
from components.concepts.texts import MAXIMUM_TEXT_LENGTH, PLACEHOLDER, contains_word, derive_texts
from components.errors import InvalidInput

IMAGE_FACTS = (
    "file",
    "line",
    "text",
    "text_length",
    "utf8",
    "placeholders",
    "class_word_present",
    "text_field",
    "text_problem",
    "text_mend",
    "base",
    "target",
    "size_bytes",
    "decodes",
    "unreadable",
    "unreadable_mend",
    "format",
    "suffix_fits",
    "mode",
    "bits",
    "frames",
    "orientation",
    "width",
    "height",
    "side",
    "aspect",
    "sha256",
    "duplicate_of",
    "perceptual_hash",
    "nearest",
    "nearest_bits",
    "sharpness",
    "background",
    "background_like",
    "background_similarity",
)


@dataclass(frozen=True)
class Facts:
    """What is known of a concept folder.

    Attributes:
        structure: a row per field of concept.yaml, per line of metadata.jsonl and per stray file: file, field,
            problem and mend, the latter two None where all is well.
        images: a row per listed image, columns `IMAGE_FACTS`; sizes in pixels after the EXIF turn.
        concept: one row: name, kind, class_word, license, source, references (lines of metadata.jsonl) and
            background_similarity (the least of all pairs, None with fewer than two readable images).
    """

    structure: pd.DataFrame
    images: pd.DataFrame
    concept: pd.DataFrame


def gather(folder: Path) -> Facts:
    """Collect the facts of an existing concept folder."""
    fields, field_problems = read_concept_file(folder)
    metadata = read_metadata(folder)
    rows, row_problems = metadata.rows, metadata.problems
    stray = stray_files(folder, metadata.named)
    images, histograms = _images(folder, rows, fields)
    similarities = [
        measures.background_similarity(first, second)
        for index, first in enumerate(histograms)
        for second in histograms[:index]
    ]
    concept: dict[str, Any] = {field: fields.get(field) for field in FIELDS}
    concept["references"] = None if metadata.named is None else len(rows) + len(row_problems)
    concept["background_similarity"] = min(similarities) if similarities else None
    return Facts(
        structure=_structure(fields, rows, [*field_problems, *row_problems, *stray]),
        images=_frame(images, IMAGE_FACTS),
        concept=_frame([concept], tuple(concept)),
    )


def _frame(rows: Sequence[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    # Objects throughout: a missing fact stays None, and an integer beside it does not become a float
    writable = [{column: _writable(row[column]) for column in columns} for row in rows]
    return pd.DataFrame(writable, columns=list(columns), dtype=object)


def _writable(value: Any) -> Any:
    """The value; halves of surrogate pairs, which no file can hold, as \\ud800."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _structure(fields: dict[str, str], rows: Sequence[Row], problems: Sequence[InvalidInput]) -> pd.DataFrame:
    known = [(CONCEPT_FILE, field, None, None) for field in fields]
    known += [(METADATA_FILE, f"line {row.line}", None, None) for row in rows]
    found = [(Path(str(item.file)).name, item.field or "file", item.problem, item.mend) for item in problems]
    columns = ("file", "field", "problem", "mend")
    return _frame([dict(zip(columns, values, strict=True)) for values in (*known, *found)], columns)


def _images(
    folder: Path, rows: Sequence[Row], fields: dict[str, str]
) -> tuple[list[dict[str, Any]], list[measures.Array]]:
    found: list[dict[str, Any]] = []
    histograms: list[tuple[str, measures.Array]] = []
    for row in rows:
        facts: dict[str, Any] = dict.fromkeys(IMAGE_FACTS)
        facts.update(file=row.file_name, line=row.line)
        facts.update(_text_facts(row, fields))
        histogram = _pixel_facts(folder / row.file_name, facts)
        _compare(facts, found)
        if histogram is not None:
            for name, other in histograms:
                similarity = measures.background_similarity(histogram, other)
                if similarity > (facts["background_similarity"] or 0.0):
                    facts.update(background_like=name, background_similarity=similarity)
            histograms.append((row.file_name, histogram))
        found.append(facts)
    return found, [histogram for _, histogram in histograms]


def _text_facts(row: Row, fields: dict[str, str]) -> dict[str, Any]:
    kind, class_word = fields.get("kind"), fields.get("class_word")
    facts: dict[str, Any] = {
        "text": row.text,
        "text_length": len(row.text.strip()),
        "utf8": _encodes(row.text) and _encodes(row.base_text or ""),
        "placeholders": row.text.count(PLACEHOLDER),
    }
    if kind is None or class_word is None:
        return facts
    facts["class_word_present"] = contains_word(row.text, class_word)
    told_otherwise = (
        not 1 <= facts["text_length"] <= MAXIMUM_TEXT_LENGTH
        or not facts["utf8"]
        or facts["placeholders"] != 1
        or (kind == "instance" and not facts["class_word_present"])
    )
    try:
        texts = derive_texts(row.text, kind=kind, class_word=class_word, base_text=row.base_text)
        facts.update(base=texts.base, target=texts.target)
    except InvalidInput as error:
        if not told_otherwise or error.field == "base_text":
            facts.update(text_field=error.field, text_problem=error.problem, text_mend=error.mend)
    return facts


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pixel_facts(path: Path, facts: dict[str, Any]) -> measures.Array | None:
    """Fill in what the image file says; returns the histogram of its border if it decodes."""
    facts["decodes"] = False
    try:
        content = read_bytes(path, limit=MAXIMUM_IMAGE_BYTES)
        facts.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        header = read_header(content)
        turned = header.orientation >= 5  # these orientations lay the image on its side
        width, height = (header.height, header.width) if turned else (header.width, header.height)
        facts.update(
            format=header.format,
            suffix_fits=header.format not in FORMATS or path.suffix.lower() in FORMATS[header.format],
            mode=header.mode,
            bits=header.bits,
            frames=header.frames,
            orientation=header.orientation,
            width=width,
            height=height,
            side=min(width, height),
            aspect=max(width, height) / min(width, height),
        )
        if header_problem(header):
            facts["decodes"] = None  # not tried: judged by format, mode, bits and frames
            return None
        image = decode(content)
    except InvalidInput as error:
        facts.update(unreadable=error.problem, unreadable_mend=error.mend)
        return None
    histogram = measures.background(image)
    facts.update(
        decodes=True,
        perceptual_hash=measures.perceptual_hash(image),
        sharpness=measures.sharpness(image),
        background=measures.background_hash(histogram),
    )
    return histogram


def _compare(facts: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> None:
    """Fill in the earlier image that this one repeats byte for byte, or else the one it looks most like."""
    for other in earlier:
        if facts["sha256"] is not None and facts["sha256"] == other["sha256"]:
            facts["duplicate_of"] = other["file"]
            return
    for other in earlier:
        if facts["perceptual_hash"] is None or other["perceptual_hash"] is None:
            continue
        bits = measures.hamming(facts["perceptual_hash"], other["perceptual_hash"])
        if facts["nearest_bits"] is None or bits < facts["nearest_bits"]:
            facts.update(nearest=other["file"], nearest_bits=bits)

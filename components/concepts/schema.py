"""The two files of a concept folder: `concept.yaml` and `metadata.jsonl`.

Each reader returns what it could read and every problem it met, so that a person sees all of them at once; nothing
here decodes an image.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.concepts.paths import name_problem, read_text
from components.concepts.texts import CLASS_WORD_PATTERN, NAME_PATTERN, STYLE_CLASS_WORD
from components.errors import InvalidInput

CONCEPT_FILE = "concept.yaml"
METADATA_FILE = "metadata.jsonl"
KINDS = ("instance", "style")
FIELDS = ("name", "kind", "class_word", "license", "source")
MAXIMUM_LINES = 1000
_ROW_FIELDS = {"file_name": True, "text": True, "base_text": False}
"""Field of a metadata line -> whether it must be there."""


@dataclass(frozen=True)
class Metadata:
    """What metadata.jsonl holds.

    Attributes:
        rows: the valid lines.
        problems: what is wrong with the others.
        named: every image that a line names, valid or not; None if the file as a whole cannot be read.
    """

    rows: list[Row]
    problems: list[InvalidInput]
    named: set[str] | None


@dataclass(frozen=True)
class Row:
    """One line of metadata.jsonl: the image `file_name`, its complete text and, if given, its base text."""

    line: int
    file_name: str
    text: str
    base_text: str | None


def read_concept_file(folder: Path) -> tuple[dict[str, str], list[InvalidInput]]:
    """The valid fields of `concept.yaml` and the problems of the others."""
    file = folder / CONCEPT_FILE
    try:
        content = yaml.safe_load(read_text(file))
    except InvalidInput as error:
        mend = f"write it with the fields {', '.join(FIELDS)}" if not file.exists() else error.mend
        return {}, [InvalidInput(error.problem, file=file, field=error.field, mend=mend)]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        field = f"line {mark.line + 1}" if mark else None
        problem = getattr(error, "problem", None) or str(error)
        return {}, [InvalidInput(f"not YAML: {problem}", file=file, field=field, mend="mend the syntax")]
    if not isinstance(content, dict):
        return {}, [InvalidInput("not a mapping", file=file, mend=f"write the fields {', '.join(FIELDS)}")]
    fields: dict[str, str] = {}
    problems = [
        InvalidInput("unknown field", file=file, field=str(key), mend=f"known fields: {', '.join(FIELDS)}")
        for key in content
        if key not in FIELDS
    ]
    for field in FIELDS:
        found = field_problem(field, content[field]) if field in content else ("missing", f"add {field}: ...")
        if found is None and field == "name" and content["name"] != folder.name:
            found = (f"{content['name']!r}, but the folder is {folder.name!r}", "give both the same name")
        if found:
            problems.append(InvalidInput(found[0], file=file, field=field, mend=found[1]))
        else:
            fields[field] = content[field]
    if fields.get("kind") == "style" and fields.get("class_word", STYLE_CLASS_WORD) != STYLE_CLASS_WORD:
        found_word = fields.pop("class_word")
        mend = f"write class_word: {STYLE_CLASS_WORD}; the target text of a style is '[V] style'"
        problems.append(InvalidInput(f"{found_word!r} in a style concept", file=file, field="class_word", mend=mend))
    return fields, problems


def field_problem(field: str, value: Any) -> tuple[str, str] | None:
    """Why `value` is none for a field of concept.yaml, and the mend; None if it is one."""
    if not isinstance(value, str):
        return f"{value!r} is not a text", "write a text; quote it if YAML reads it as something else"
    if field == "name" and not re.fullmatch(NAME_PATTERN, value):
        return f"{value!r} is no name", "a small letter, then up to 62 of a-z, 0-9, _ and -"
    if field == "kind" and value not in KINDS:
        return f"{value!r} is no kind", f"write {' or '.join(KINDS)}"
    if field == "class_word" and (not re.fullmatch(CLASS_WORD_PATTERN, value) or len(value) > 64):
        return f"{value[:80]!r} is no class word", "write the common name of what it is, e.g. star or stuffed animal"
    if field in {"license", "source"} and (not value.strip() or len(value) > 500 or not value.isprintable()):
        return f"{value[:80]!r} is empty, longer than 500 characters or not printable", f"state the {field} in one line"
    return None


def read_metadata(folder: Path) -> Metadata:
    """The valid lines of `metadata.jsonl` and the problems of the others; what the texts say is not judged here."""
    file = folder / METADATA_FILE
    try:
        content = read_text(file)
    except InvalidInput as error:
        mend = (
            'write a line {"file_name": "01.png", "text": "a [V] ..."} per image' if not file.exists() else error.mend
        )
        return Metadata([], [InvalidInput(error.problem, file=file, field=error.field, mend=mend)], None)
    rows: list[Row] = []
    problems: list[InvalidInput] = []
    first_line: dict[str, int] = {}
    named: set[str] = set()
    lines = content.split("\n")
    if len(lines) > MAXIMUM_LINES:
        problem = f"{len(lines)} lines, at most {MAXIMUM_LINES} are read"
        return Metadata([], [InvalidInput(problem, file=file, mend="split the concept")], None)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            values = _object(line)
            if isinstance(values.get("file_name"), str):
                named.add(values["file_name"])
            row = _row(number, values)
        except InvalidInput as error:
            field = f"{where}: {error.field}" if error.field else where
            problems.append(InvalidInput(error.problem, file=file, field=field, mend=error.mend))
            continue
        if row.file_name in first_line:
            problem = f"{row.file_name!r} stands in line {first_line[row.file_name]} already"
            problems.append(InvalidInput(problem, file=file, field=f"{where}: file_name", mend="keep one of the lines"))
            continue
        first_line[row.file_name] = number
        rows.append(row)
    return Metadata(rows, problems, named)


def _object(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}", mend="write one JSON object per line") from error
    if not isinstance(values, dict):
        raise InvalidInput("not a JSON object", mend='write {"file_name": ..., "text": ...}')
    return values


def _row(number: int, values: dict[str, Any]) -> Row:
    for key in values:
        if key not in _ROW_FIELDS:
            raise InvalidInput("unknown field", field=key, mend=f"known fields: {', '.join(_ROW_FIELDS)}")
    for key, required in _ROW_FIELDS.items():
        value = values.get(key)
        if (key in values or required) and not isinstance(value, str):
            problem = "missing" if key not in values else f"{value!r} is not a text"
            raise InvalidInput(problem, field=key, mend=f"write {key} as a text")
    problem_and_mend = name_problem(values["file_name"])
    if problem_and_mend:
        raise InvalidInput(problem_and_mend[0], field="file_name", mend=problem_and_mend[1])
    return Row(number, values["file_name"], values["text"], values.get("base_text"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidInput("stands twice", field=twice, mend="keep one of the two")
    return values

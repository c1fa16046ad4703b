"""What a concept is: a folder of a few images with their texts (DESIGN section 3)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from components.concepts.paths import IMAGE_SUFFIXES, MAXIMUM_IMAGE_BYTES, file_problem, read_bytes
from components.concepts.schema import CONCEPT_FILE, METADATA_FILE, read_concept_file, read_metadata
from components.concepts.texts import NAME_PATTERN, Texts, derive_texts
from components.errors import InvalidInput

Kind = Literal["instance", "style"]
_OTHER_FILES = re.compile(r"(?i)(license|notice|readme)(\.(md|txt))?")


@dataclass(frozen=True)
class Reference:
    """One reference image with the text as written and the texts derived from it."""

    path: Path
    text: str
    texts: Texts


@dataclass(frozen=True)
class Concept:
    """A concept as its folder states it; the references stand in the order of metadata.jsonl."""

    name: str
    kind: Kind
    class_word: str
    license: str
    source: str
    folder: Path
    references: tuple[Reference, ...]


def load_concept(folder: Path) -> Concept:
    """Read a concept folder; images are found but not decoded (`validation.validate` judges them).

    Raises:
        InvalidInput: the first problem of the folder, with file, field and mend.
    """
    problem = folder_problem(folder)
    if problem:
        raise problem
    fields, problems = read_concept_file(folder)
    metadata = read_metadata(folder)
    problems += metadata.problems
    problems += stray_files(folder, metadata.named)
    if problems:
        raise problems[0]
    references = []
    for row in metadata.rows:
        path = folder / row.file_name
        unreadable = file_problem(path)
        if unreadable:
            raise InvalidInput(unreadable[0], file=path, mend=unreadable[1])
        try:
            texts = derive_texts(
                row.text, kind=fields["kind"], class_word=fields["class_word"], base_text=row.base_text
            )
        except InvalidInput as error:
            raise InvalidInput(
                error.problem, file=folder / METADATA_FILE, field=f"line {row.line}: {error.field}", mend=error.mend
            ) from error
        references.append(Reference(path, row.text, texts))
    if not references:
        raise InvalidInput("no reference image", file=folder / METADATA_FILE, mend="add 3 to 5 images")
    return Concept(
        name=fields["name"],
        kind=cast(Kind, fields["kind"]),
        class_word=fields["class_word"],
        license=fields["license"],
        source=fields["source"],
        folder=folder,
        references=tuple(references),
    )


def folder_problem(folder: Path) -> InvalidInput | None:
    """Why `folder` is no concept folder at all."""
    if folder.is_symlink():
        return InvalidInput("the concept's folder is a symbolic link", file=folder, mend="copy the folder here")
    if not folder.is_dir():
        known = ", ".join(path.name for path in list_concepts(folder.parent)) or "none"
        return InvalidInput(f"no concept {folder.name!r}", file=folder, mend=f"known concepts: {known}")
    return None


def stray_files(folder: Path, listed: set[str] | None) -> list[InvalidInput]:
    """Everything in the folder that is neither hidden nor one of its files: nothing is dropped silently.

    With `listed=None` (it is not known which images are listed) no image counts as stray.
    """
    problems = []
    for path in sorted(folder.iterdir()):
        if path.name in (listed or ()) or path.name.startswith(".") or path.name in {CONCEPT_FILE, METADATA_FILE}:
            continue
        unreadable = file_problem(path)
        if path.is_dir() and not path.is_symlink():
            problems.append(InvalidInput("a folder inside a concept", file=path, mend="move its images up, remove it"))
        elif unreadable:
            problems.append(InvalidInput(unreadable[0], file=path, mend=unreadable[1]))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            if listed is None:
                continue
            mend = f"add its line to {METADATA_FILE} or remove the image"
            problems.append(InvalidInput(f"the image is not listed in {METADATA_FILE}", file=path, mend=mend))
        elif not _OTHER_FILES.fullmatch(path.name):
            problems.append(InvalidInput("a file that belongs to no concept", file=path, mend="remove the file"))
    return problems


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 over the relative path and the bytes of each file of a concept; hidden files do not count.

    Raises:
        InvalidInput: the folder holds a link, a folder or something that is no plain file.
    """
    problem = folder_problem(folder)
    if problem:
        raise problem
    total = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        content = hashlib.sha256(read_bytes(path, limit=MAXIMUM_IMAGE_BYTES)).hexdigest()
        total.update(f"{content}  {path.name}\n".encode())
    return total.hexdigest()


def list_concepts(root: Path) -> list[Path]:
    """The concept folders directly below `root`, by name; whether they are valid is not judged."""
    if not root.is_dir():
        return []
    return sorted(
        path for path in root.iterdir() if re.fullmatch(NAME_PATTERN, path.name) and (path / CONCEPT_FILE).is_file()
    )

"""Adding, listing and showing the concepts of a project; a concept folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from components.concepts.concept import fingerprint, list_concepts, load_concept
from components.concepts.images import decode, read_header
from components.concepts.paths import MAXIMUM_IMAGE_BYTES, read_bytes
from components.concepts.schema import CONCEPT_FILE, FIELDS, KINDS, METADATA_FILE, field_problem
from components.concepts.texts import NAME_PATTERN, PLACEHOLDER, STYLE_CLASS_WORD, derive_texts
from components.errors import InvalidInput
from components.settings import ConceptSettings

Check = Callable[[Path], None]
"""Looks at a finished concept folder before it takes its name; raises to refuse it."""


def default_text(kind: str, class_word: str) -> str:
    """The text of a photo nobody described: `a photo of a [V] dog`, or for a style `a picture, in [V] style`."""
    return f"a picture, in {PLACEHOLDER} style" if kind == "style" else f"a photo of a {PLACEHOLDER} {class_word}"


def add_concept(
    root: Path,
    name: str,
    *,
    class_word: str,
    images: Sequence[Path],
    settings: ConceptSettings,
    kind: str = "instance",
    texts: Sequence[str] | None = None,
    base_texts: Sequence[str | None] | None = None,
    license: str = "not stated",  # noqa: A002 - the field's name
    source: str = "added by hand",
    check: Check | None = None,
    replace: bool = False,
) -> Path:
    """Make the concept folder `root/name` of image files and their texts; on any error nothing is left behind.

    Images that are fine keep their bytes; one with an EXIF turn, another mode than RGB or another suffix than its
    format's becomes an RGB PNG. They are named 01, 02, ... in the order given.

    Args:
        root: the folder of all concepts, e.g. `data/concepts`.
        name: the concept's name.
        class_word: what it is an example of; `style` for a style.
        images: the image files.
        settings: bounds on the number of images, and the class words of the base.
        kind: `instance` or `style`.
        texts: the complete text of each image; None: `default_text` for all.
        base_texts: the base text of each image, None where it is derived.
        license: the images' licence.
        source: where the images come from.
        check: has the last word on the finished folder.
        replace: whether an existing concept of that name may be replaced.

    Raises:
        InvalidInput: the field or image is named, with the mend.
    """
    fields = {"name": name, "kind": kind, "class_word": class_word, "license": license, "source": source}
    _check_fields(fields, settings)
    _check_count(len(images), settings)
    texts = [default_text(kind, class_word)] * len(images) if texts is None else texts
    base_texts = [None] * len(images) if base_texts is None else base_texts
    if not len(images) == len(texts) == len(base_texts):
        problem = f"{len(images)} images, {len(texts)} texts and {len(base_texts)} base texts"
        raise InvalidInput(problem, field="texts", mend="give one text per image")
    target = root / name
    if os.path.lexists(target) and not replace:
        raise InvalidInput(f"a concept {name!r} exists", file=target, field="name", mend="choose another name")
    with _appearing(target) as folder:
        lines = []
        originals: dict[str, Path] = {}
        seen: dict[str, Path] = {}
        for number, (image, text, base_text) in enumerate(zip(images, texts, base_texts, strict=True), 1):
            _check_text(image, kind, class_word, text, base_text)
            _check_once(image, seen)
            row = {"file_name": _copy(image, folder, f"{number:02d}"), "text": text}
            originals[row["file_name"]] = image
            lines.append(json.dumps(row if base_text is None else {**row, "base_text": base_text}, ensure_ascii=False))
        (folder / METADATA_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        header = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
        (folder / CONCEPT_FILE).write_text(header, encoding="utf-8")
        try:
            load_concept(folder)
            if check:
                check(folder)
        except InvalidInput as error:
            raise _of_the_original(error, folder, target, originals) from error
    return target


def summaries(root: Path) -> list[dict[str, Any]]:
    """A JSON-able mapping per concept folder: name, kind, class_word, references, fingerprint.

    A folder that cannot be read is listed too, with its `error` and the rest None.
    """
    return [_summary(folder) for folder in list_concepts(root)]


def show(root: Path, name: str) -> dict[str, Any]:
    """One concept in full, as a JSON-able mapping.

    Raises:
        InvalidInput: no such concept, or its folder is not valid.
    """
    concept = load_concept(find(root, name))
    return {
        **_summary(concept.folder),
        "license": concept.license,
        "source": concept.source,
        "folder": str(concept.folder),
        "images": [{"file": reference.path.name, **asdict(reference.texts)} for reference in concept.references],
    }


def find(root: Path, name: str) -> Path:
    """The folder of the concept `name`.

    Raises:
        InvalidInput: the name is none (it never leads out of `root`) or is not known; the known ones are listed.
    """
    folder = root / name
    if not re.fullmatch(NAME_PATTERN, name) or not folder.is_dir():
        known = ", ".join(path.name for path in list_concepts(root)) or "none yet, add one"
        raise InvalidInput(f"no concept {name[:80]!r}", file=root, mend=f"known concepts: {known}")
    return folder


def _summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": folder.name}
    try:
        concept = load_concept(folder)
        summary.update(kind=concept.kind, class_word=concept.class_word, references=len(concept.references))
        summary["fingerprint"] = fingerprint(folder)
    except InvalidInput as error:
        summary.update(kind=None, class_word=None, references=None, fingerprint=None, error=str(error))
    return summary


def _check_fields(fields: dict[str, str], settings: ConceptSettings) -> None:
    for field in FIELDS:
        problem = field_problem(field, fields[field])
        if problem:
            raise InvalidInput(problem[0], field=field, mend=problem[1])
    if fields["kind"] == KINDS[1]:
        if fields["class_word"] != STYLE_CLASS_WORD:
            mend = f"write {STYLE_CLASS_WORD}; the target text of a style is '[V] style'"
            raise InvalidInput(f"{fields['class_word']!r} in a style concept", field="class_word", mend=mend)
    elif settings.class_words is not None and fields["class_word"] not in settings.class_words:
        raise InvalidInput(
            f"the base does not know the class word {fields['class_word']!r}",
            field="class_word",
            mend=f"known: {', '.join(settings.class_words)}; to train it all the same: --set concepts.class_words=null",
        )


def _check_count(count: int, settings: ConceptSettings) -> None:
    if count < settings.minimum_references:
        problem = f"{count} images, at least {settings.minimum_references} are needed"
        raise InvalidInput(problem, field="images", mend="add images; 3 to 5 are best")
    if count > settings.maximum_references:
        problem = f"{count} images, at most {settings.maximum_references} are taken"
        raise InvalidInput(problem, field="images", mend="keep the best 3 to 5")


def _check_text(image: Path, kind: str, class_word: str, text: str, base_text: str | None) -> None:
    try:
        derive_texts(text, kind=kind, class_word=class_word, base_text=base_text)
    except InvalidInput as error:
        raise InvalidInput(error.problem, file=image, field=error.field, mend=error.mend) from error


def _of_the_original(error: InvalidInput, folder: Path, target: Path, originals: dict[str, Path]) -> InvalidInput:
    """The error with the files that a person knows: `folder` is gone when it is read."""
    file = Path(str(error.file)) if error.file is not None else folder
    known = originals.get(file.name) or Path(str(file).replace(str(folder), str(target)))
    problem = error.problem.replace(str(folder), str(target))
    return InvalidInput(problem, file=known, field=error.field, mend=error.mend)


def _check_once(image: Path, seen: dict[str, Path]) -> None:
    digest = hashlib.sha256(read_bytes(image, limit=MAXIMUM_IMAGE_BYTES)).hexdigest()
    if digest in seen:
        raise InvalidInput(f"the same file as {seen[digest].name}", file=image, field="image", mend="give it once")
    seen[digest] = image


def _copy(image: Path, folder: Path, stem: str) -> str:
    """Put an image into the folder; returns its name there."""
    content = read_bytes(image, limit=MAXIMUM_IMAGE_BYTES)
    try:
        header = read_header(content)
        decoded = decode(content)
    except InvalidInput as error:
        raise InvalidInput(error.problem, file=image, field="image", mend=error.mend) from error
    if header.orientation == 1 and header.mode == "RGB":
        suffix = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}[header.format]
    else:
        suffix, content = ".png", _png(decoded)
    (folder / f"{stem}{suffix}").write_bytes(content)
    return f"{stem}{suffix}"


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(stream, "PNG")  # without the original's metadata
    return stream.getvalue()


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Yield an empty folder of the target's name elsewhere; on success it takes the target's place."""
    made = [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    succeeded = False
    try:
        folder = hidden / target.name
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if os.path.lexists(target):
            target.rename(hidden / "replaced")
        folder.rename(target)
        succeeded = True
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        for parent in [] if succeeded else made:
            with contextlib.suppress(OSError):
                parent.rmdir()

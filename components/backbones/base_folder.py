"""Where a base model lies, whether its files are whole, and which model it is.

The layout is that of diffusers: `model_index.json` and one folder per part.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from components.errors import InvalidInput
from components.files import digest_of, sha256_file, write_json
from components.model_folder import pipeline_problems
from components.settings import BaseSettings, project_root

logger = logging.getLogger(__name__)

PARTS = (
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "scheduler",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KNOWN_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")


def _project_root() -> Path | None:
    try:
        return project_root()
    except InvalidInput:
        return None


def resolve(settings: BaseSettings) -> Path:
    """The folder of the base model: `settings.path` in the project, or the local snapshot of that hub id.

    Raises:
        InvalidInput: neither exists (with `HF_HUB_OFFLINE=0` a hub id is fetched first), or the folder is incomplete:
            each missing or truncated file is named.
    """
    path = Path(settings.path).expanduser()
    folder = path if path.is_absolute() else (_project_root() or Path.cwd()) / path
    if not folder.is_dir():
        folder = _snapshot(settings, folder)
    problems = pipeline_problems(folder)
    if problems:
        raise InvalidInput(
            "; ".join(problems),
            file=folder,
            field="base.path",
            mend="the base model is incomplete: fetch or build it again",
        )
    return folder


def _snapshot(settings: BaseSettings, tried: Path) -> Path:
    if not _HUB_ID.fullmatch(settings.path):
        raise InvalidInput("no such base model folder", file=tried, field="base.path", mend="correct the path")
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json", *(f"{part}/*" for part in PARTS)]
    try:
        return Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # not cached, not reachable, not a valid name, no access
        raise InvalidInput(
            f"{settings.path!r} is neither a folder nor a model in the local Hugging Face cache: {error}",
            field="base.path",
            mend="give a folder, fetch it with `hf download`, or set HF_HUB_OFFLINE=0",
        ) from error


def has_part(folder: Path, part: str) -> bool:
    """Whether `model_index.json` names the part (a family may come without T5)."""
    entry = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get(part)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _files(folder: Path) -> list[Path]:
    files = [folder / "model_index.json"]
    for part in PARTS:
        files += [
            file
            for file in sorted((folder / part).glob("*"))
            if file.is_file() and file.suffix in _KNOWN_SUFFIXES and not _VARIANT.search(file.name)
        ]
    return files


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and bytes of every configuration, tokenizer and weight file of the base.

    The result is kept under the project's `.purecc/` by size and time of change of all files, so that a large base is
    read once only.
    """
    facts = {}
    for file in _files(folder):
        status = file.stat()
        facts[file.relative_to(folder).as_posix()] = [status.st_size, status.st_mtime_ns]
    root = _project_root()
    cache = root / ".purecc" / "fingerprints" / f"{digest_of([str(folder.resolve()), facts])}.json" if root else None
    if cache is not None and cache.is_file():
        try:
            return str(json.loads(cache.read_text(encoding="utf-8"))["fingerprint"])
        except (ValueError, KeyError, TypeError):
            logger.warning("unreadable fingerprint cache %s: reading the model again", cache)
    value = digest_of({name: sha256_file(folder / name) for name in facts})
    if cache is not None:
        write_json(cache, {"fingerprint": value, "folder": str(folder)})
    return value

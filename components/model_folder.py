"""Is a model folder complete? Answered from its index and file headers alone, without loading a weight."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_LARGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")


def is_weight_file(path: str) -> bool:
    """Whether a path or hub id means a single file of weights, rather than a model folder."""
    return path.endswith(_WEIGHT_FILES)


def _read_json(file: Path) -> tuple[dict[str, Any], str | None]:
    """A JSON object and no problem, or an empty one and the problem."""
    if not file.is_file():
        return {}, f"{file}: missing"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, f"{file}: not JSON: {error}"
    return (content, None) if isinstance(content, dict) else ({}, f"{file}: not a JSON object")


def safetensors_problem(file: Path) -> str | None:
    """What is wrong with a safetensors file, judged by its header and its size; None if nothing is.

    The format: 8 bytes N (little-endian), N bytes of JSON naming each tensor's `data_offsets`, then the data.
    """
    if not file.is_file():
        return f"{file}: missing"
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            return f"{file}: truncated ({size} bytes)"
        (length,) = struct.unpack("<Q", start)
        if length > min(_LARGEST_HEADER, size - 8):
            return f"{file}: truncated, or not a safetensors file ({size} bytes)"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return f"{file}: not a safetensors file"
    if not all(isinstance(end, int) for end in ends):
        return f"{file}: not a safetensors file"
    expected = 8 + length + max(ends, default=0)
    return None if expected == size else f"{file}: {size} bytes where its header states {expected}"


def _weight_problems(folder: Path) -> list[str]:
    """Problems of a folder that holds `model.safetensors`, diffusers' name for it, or the shards of an index."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            content, problem = _read_json(index)
            shards = content.get("weight_map")
            if problem is None and not (isinstance(shards, dict) and shards):
                problem = f"{index}: no weight_map"
            if problem is not None:
                return [problem]
            found = (safetensors_problem(folder / str(name)) for name in sorted(set(content["weight_map"].values())))
            return [problem for problem in found if problem]
        if (folder / f"{stem}.safetensors").is_file():
            problem = safetensors_problem(folder / f"{stem}.safetensors")
            return [problem] if problem else []
    return [f"{folder}: no weights (neither a .safetensors file nor the index of its shards)"]


def model_problems(folder: Path) -> list[str]:
    """What a transformers model folder lacks; each line names the file. Empty: complete."""
    if not folder.is_dir():
        return [f"{folder}: no such folder"]
    _, problem = _read_json(folder / "config.json")
    return ([problem] if problem else []) + _weight_problems(folder)


def pipeline_problems(folder: Path) -> list[str]:
    """What a diffusers pipeline folder lacks; each line names the file. Empty: complete."""
    if not folder.is_dir():
        return [f"{folder}: no such folder"]
    index, problem = _read_json(folder / "model_index.json")
    if problem:
        return [problem]
    problems: list[str] = []
    for name, entry in sorted(index.items()):
        if name.startswith("_") or not isinstance(entry, list) or not all(isinstance(part, str) for part in entry):
            continue  # a setting, or an optional part that this pipeline does not have: [null, null]
        kind = entry[-1]
        if "Tokenizer" in kind or "Scheduler" in kind or "Processor" in kind or "Extractor" in kind:
            if not any((folder / name).glob("*.json")):
                problems.append(f"{folder / name}: {kind} without its configuration")
        else:
            problems += model_problems(folder / name)
    return problems

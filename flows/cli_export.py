"""`purecc export`: a champion for consumers that know nothing of this project."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.cli_options import DEFAULT_PROFILE, Json, Name, ProfileName, Set
from flows.console import arguments, command, stderr, stdout


class Format(StrEnum):
    """What is written."""

    DIFFUSERS = "diffusers"
    ONNX = "onnx"
    ONNX_ADAPTER = "onnx-adapter"


def export(
    name: Name,
    form: Annotated[
        Format, typer.Option("--format", help="for diffusers; for ONNX Runtime; for it, to a base of many concepts")
    ],
    out: Annotated[Path | None, typer.Option(help="the folder to write; default: exports/NAME-FORMAT")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="default: the champion")] = None,
    profile: ProfileName = DEFAULT_PROFILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as a folder for diffusers, with its base as ONNX graphs, or for ONNX graphs of the base.

    The last writes the graphs of the base once, beside the adapter: OUT/../onnx-base.
    """
    from components.settings import load_profile, project_root

    with command(as_json) as output:
        with arguments():
            root, settings = project_root(), load_profile(profile, overrides or [])
            store, number = _resolve(root, name, version)
        from components.tracking import registry, signing

        folder = out or root / "exports" / f"{name}-{form.value}"
        key = signing.policy_key(root, settings.promotion.public_key)
        with registry.adapter_folder(store, name, number) as adapter:
            _require(registry.version(store, name, number), adapter, key)
            if form is Format.DIFFUSERS:
                _write_diffusers(adapter, folder, settings, registry.version(store, name, number))
                providers = None
            else:
                stderr.print("exporting to ONNX ...", style="dim")
                write = _write_onnx if form is Format.ONNX else _write_onnx_adapter
                providers = write(adapter, folder, settings)
        facts = {"name": name, "version": number, "format": form.value, "folder": str(folder)}
        if providers is not None:
            facts["providers"] = providers
        output.result(facts, lambda: _show(facts))


def _resolve(root: Path, name: str, version: int | None) -> tuple[Any, int]:
    from components.errors import InvalidInput
    from components.tracking.store import is_empty
    from flows.locks import open_shared_store

    mend = f"train it first with `purecc customize {name}`"
    if is_empty(root):
        raise InvalidInput(f"no adapter of {name!r} is registered", mend=mend)
    from components.tracking import registry

    store = open_shared_store(root)
    registry.require_registered(store, name)
    number = version or registry.aliases(store, name).get(registry.CHAMPION)
    if number is None:
        raise InvalidInput(f"{name!r} has no champion", mend=f"{mend}, or name a --version")
    return store, registry.version(store, name, number).number


def _require(version: Any, adapter: Path, public_key: Path | None) -> None:
    """The champion has to be one that may be it; any other version, which is named on purpose, to be signed."""
    from components.tracking import blessings, registry, signing

    if registry.CHAMPION in version.aliases:
        blessings.require(version, adapter, public_key, act="exported")
    else:
        signing.require_signed(adapter, version.tags.get(signing.TAG), public_key)


def _write_diffusers(adapter: Path, folder: Path, settings: Any, version: Any) -> None:
    import yaml

    from components.export.diffusers_folder import export_diffusers
    from components.tracking import signing

    sampling = settings.evaluation.sampling.model_dump(mode="json")
    base = {
        "settings": settings.base.model_dump(mode="json"),
        "fingerprint": version.tags.get("base/fingerprint", ""),
        "sampling": sampling,
    }
    concept = yaml.safe_load((adapter / "concept.yaml").read_text(encoding="utf-8"))
    signature = version.tags.get(signing.TAG)
    class_word = str(concept.get("class_word") or "")
    export_diffusers(adapter, folder, base, class_word=class_word, signature=signature)


def _write_onnx(adapter: Path, folder: Path, settings: Any) -> list[str]:
    from components.backbones.sd3 import SD3Backbone
    from components.export.onnx_folder import export_onnx
    from components.export.onnx_sampler import OnnxSampler

    backbone = SD3Backbone.load(settings.base)
    backbone.load_adapter(adapter, "exported")
    export_onnx(backbone, "exported", folder, settings.evaluation.sampling.model_dump(mode="json"))
    return OnnxSampler(folder).providers  # it loads, and this says where it runs


def _write_onnx_adapter(adapter: Path, folder: Path, settings: Any) -> list[str]:
    from components.backbones.sd3 import SD3Backbone
    from components.export.onnx_adapters import export_onnx_adapter, export_onnx_base, is_base_of
    from components.export.onnx_sampler import OnnxSampler

    base = folder.parent / "onnx-base"
    export_onnx_adapter(adapter, folder)
    if not is_base_of(base, folder):
        sampling = settings.evaluation.sampling.model_dump(mode="json")
        export_onnx_base(SD3Backbone.load(settings.base), base, sampling)
    sampler = OnnxSampler(base)
    sampler.load_adapter(folder)
    return sampler.providers


def _show(facts: dict[str, Any]) -> None:
    runs = f"; ONNX Runtime runs it with {json.dumps(facts['providers'])}" if "providers" in facts else ""
    stdout.print(
        escape(f"{facts['folder']}: {facts['name']} version {facts['version']} for {facts['format']}{runs}"),
        soft_wrap=True,
    )

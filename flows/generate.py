"""Drawing with champions: one base, the adapters of the concepts that a prompt names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.concepts.schema import read_concept_file
from components.concepts.texts import mentions, prompt_problem, without_mentions
from components.errors import InvalidInput
from components.settings import Profile
from components.tracking import blessings, registry, signing
from components.tracking.store import is_empty, open_store
from flows.console import WrongUse


def generate(
    root: Path,
    profile: Profile,
    prompt: str,
    *,
    seed: int,
    out: Path,
    original: bool = False,
    steps: int | None = None,
    guidance: float | None = None,
    how: str = "merge",
) -> dict[str, Any]:
    """Draw one image and write it as PNG.

    Args:
        how: in which way the adapters of several concepts act together, see `components.backbones.composition`.
        original: draw the prompt without its concepts by the untouched base: the other half of a same-seed pair.

    Returns:
        file, prompt as drawn, seed, versions of the champions, how several act together (None for one), and a note
        for a person.

    Raises:
        WrongUse: `[V]` in the prompt, or a concept without a champion.
        InvalidInput: a champion of another base.
        PromotionRefused: a champion that may not be one, or that is not signed as configured.
    """
    if problem := prompt_problem(prompt):
        raise WrongUse(f"the prompt: {problem[0]} ({problem[1]})")
    names = list(dict.fromkeys(mention.name for mention in mentions(prompt)))
    if "" in names:
        raise WrongUse("[V] is for datasets: name the concept, e.g. 'a <striped_star> star'")
    # All is looked up before anything heavy is loaded; also for --original, where a wrong name is as wrong.
    versions = _champions(root, names)

    from components.backbones.sd3 import SD3Backbone
    from components.evaluation.pictures import to_pictures, write_png

    backbone = SD3Backbone.load(profile.base)
    drawn = _plain(prompt, root, names) if original else prompt
    adapter = None
    if not original:
        key = signing.policy_key(root, profile.promotion.public_key)
        adapter = _load(backbone, root, versions, how, key)
    sampling = profile.evaluation.sampling
    images_BCHW = backbone.sample(
        backbone.encode_text([drawn]),
        backbone.encode_text([""]),
        seeds=[seed],
        steps=steps or sampling.steps,
        guidance_scale=sampling.guidance_scale if guidance is None else guidance,
        adapter=adapter,
    )
    write_png(out, to_pictures(images_BCHW)[0])
    return {
        "file": str(out),
        "prompt": drawn,
        "seed": seed,
        "original": original or not names,
        "versions": {} if original else versions,
        "compose": how if len(names) > 1 and not original else None,
        "note": _note(names, versions, original, how),
    }


def _load(backbone: Any, root: Path, versions: dict[str, int], how: Any, public_key: Path | None) -> str | None:
    """Load the champions, each if it may be one; the name under which they act."""
    from components.backbones.composition import compose

    store = open_store(root)
    texts = {}
    for name, number in versions.items():
        with registry.adapter_folder(store, name, number) as folder:
            blessings.require(registry.version(store, name, number), folder, public_key, act="drawn with")
            backbone.load_adapter(folder, name)
            fields, _ = read_concept_file(folder)
        texts[name] = f"<{name}> {fields.get('class_word', '')}".strip()
    if len(versions) < 2:
        return next(iter(versions), None)
    together = "+".join(versions)
    compose(backbone, together, list(versions), how, texts=texts)
    return together


def _champions(root: Path, names: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    empty = not names or is_empty(root)
    for name in names:
        champion = None if empty else registry.aliases(open_store(root), name).get(registry.CHAMPION)
        if champion is None:
            raise WrongUse(f"<{name}> has no champion: train it first with `purecc customize {name}`")
        found[name] = champion
    return found


def _plain(prompt: str, root: Path, names: list[str]) -> str:
    """The prompt without its concepts; of a style the whole phrase goes."""
    from components.concepts.concept import load_concept

    kinds = set()
    for name in names:
        try:
            kinds.add(load_concept(root / "data" / "concepts" / name).kind)
        except InvalidInput:  # its data is not here: the adapter is
            kinds.add("instance")
    return without_mentions(prompt, kind="style" if "style" in kinds else "instance")


def _note(names: list[str], versions: dict[str, int], original: bool, how: str) -> str:
    if original or not names:
        return "by the original model"
    note = ", ".join(f"<{name}> version {versions[name]}" for name in names)
    return note if len(names) == 1 else f"{note}; together by {how}"

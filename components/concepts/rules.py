"""The rules a concept has to satisfy: which fact is judged, how, how gravely, and what mends it.

Data only: `validation` makes a great-expectations suite of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from components.concepts.images import DEEP_MODES, FORMATS, MODES
from components.concepts.schema import CONCEPT_FILE, METADATA_FILE
from components.concepts.texts import MAXIMUM_TEXT_LENGTH
from components.settings import ConceptSettings

Table = Literal["structure", "images", "concept"]
Check = Literal["null", "between", "in_set"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        key: its stable name.
        table: the table of facts it judges.
        column: the fact.
        check: null: the fact is None; between, in_set: it lies in `bounds`. A fact that is None passes the latter two.
        problem: what is wrong where it fails; may name facts of the row in braces.
        mend: what to do; may name facts of the row in braces.
        file: the file to look into; may name facts.
        where: the field to look at; may name facts.
        warning: whether it is recorded only.
        bounds: arguments of the expectation.
    """

    key: str
    table: Table
    column: str
    check: Check
    problem: str
    mend: str
    file: str
    where: str
    warning: bool = False
    bounds: dict[str, Any] = field(default_factory=dict)


def rules(settings: ConceptSettings, *, kind: str | None) -> list[Rule]:
    """All rules for a concept of a kind (None: unknown, since concept.yaml is broken)."""
    found = [
        Rule("structure_valid", "structure", "problem", "null", "{problem}", "{mend}", "{file}", "{field}"),
        *_text_rules(),
        *_image_rules(settings),
        *_concept_rules(settings),
    ]
    if kind != "style":
        mend = "write e.g. 'a [V] <class word> ...'"
        problem = "the class word does not stand in {text!r:.80}"
        found.append(_text("class_word_in_text", "class_word_present", problem, mend, value_set=[True]))
        if settings.class_words is not None:
            found.append(_known_class_word(settings.class_words))
    return found


def _text(key: str, column: str, problem: str, mend: str, **bounds: Any) -> Rule:
    check: Check = "in_set" if "value_set" in bounds else "between"
    return Rule(key, "images", column, check, problem, mend, METADATA_FILE, "line {line}: text", bounds=bounds)


def _image(key: str, where: str, column: str, problem: str, mend: str, *, warning: bool = False, **bounds: Any) -> Rule:
    check: Check = "in_set" if "value_set" in bounds else "between" if bounds else "null"
    return Rule(key, "images", column, check, problem, mend, "{file}", where, warning, bounds)


def _text_rules() -> list[Rule]:
    limit = MAXIMUM_TEXT_LENGTH
    too_long = f"{{text_length}} characters, at most {limit} are read by a text encoder"
    placeholders = "[V] stands {placeholders} times in {text!r:.80}"
    where_named = "write [V] exactly once, where the concept is named"
    return [
        _text("text_not_empty", "text_length", "the text is empty", "describe the image", min_value=1),
        _text("text_not_too_long", "text_length", too_long, "shorten the text", max_value=limit),
        _text("text_utf8", "utf8", "half of a surrogate pair is no text", "remove the character", value_set=[True]),
        _text("placeholder_once", "placeholders", placeholders, where_named, value_set=[1]),
        Rule(
            "text_derivable",
            "images",
            "text_problem",
            "null",
            "{text_problem}",
            "{text_mend}",
            METADATA_FILE,
            "line {line}: {text_field}",
        ),
    ]


def _image_rules(settings: ConceptSettings) -> list[Rule]:
    colours = "convert it to sRGB with 8 bits per channel and save it as PNG or JPEG"
    small = f"{{width}} x {{height}} pixels, the short side needs {settings.minimum_side}"
    alike = "looks like {nearest}: {nearest_bits} of 64 bits differ"
    cropped = "{width} x {height} pixels: the centre crop loses much of it"
    suffix = "give it the suffix of its format"
    # The deep modes are left to the rule on bits, so that one fault is told once
    modes = sorted(MODES | DEEP_MODES)
    sharp, bits, aspect = settings.minimum_sharpness, settings.near_duplicate_bits, settings.maximum_aspect
    return [
        _image("image_readable", "image", "unreadable", "{unreadable}", "{unreadable_mend}"),
        _image("image_format", "format", "format", "a {format} image", "save it as PNG or JPEG", value_set=[*FORMATS]),
        _image("image_suffix", "file_name", "suffix_fits", "the file holds a {format} image", suffix, value_set=[True]),
        _image("image_still", "frames", "frames", "{frames} frames, an animation", "save one as PNG", value_set=[1]),
        _image("image_mode", "mode", "mode", "the colour mode is {mode}", colours, value_set=modes),
        _image("image_8_bits", "bits", "bits", "{bits} bits per channel", "save it with 8 bits", max_value=8),
        _image("image_large_enough", "size", "side", small, "take a larger copy", min_value=settings.minimum_side),
        _image("image_once", "sha256", "duplicate_of", "the same file as {duplicate_of}", "remove one and its line"),
        _image("image_not_near_duplicate", "perceptual_hash", "nearest_bits", alike, "keep one of the two",
               warning=True, min_value=bits + 1),
        _image("image_sharp", "sharpness", "sharpness", "blurred: sharpness {sharpness:.0f}", "take a sharper image",
               warning=True, min_value=sharp),
        _image("image_aspect", "aspect", "aspect", cropped, "crop the image around the concept",
               warning=True, max_value=aspect),
    ]  # fmt: skip


def _concept_rules(settings: ConceptSettings) -> list[Rule]:
    def references(key: str, problem: str, mend: str, *, warning: bool = False, **bounds: Any) -> Rule:
        return Rule(
            key, "concept", "references", "between", problem, mend, METADATA_FILE, "references", warning, bounds
        )

    least, most = settings.minimum_references, settings.maximum_references
    few = "only {references} references: what they share is learned along with the concept"
    alike = "all backgrounds look alike ({background_similarity:.2f} of 1) and may be learned along with the concept"
    more = "add images and their lines; 3 to 5 are best"
    return [
        references("references_enough", f"{{references}} references, at least {least}", more, min_value=least),
        references("references_not_too_many", f"{{references}} references, at most {most}", "keep the best 3 to 5",
                   max_value=most),
        references("references_comfortable", few, more, warning=True, min_value=3),
        Rule("backgrounds_differ", "concept", "background_similarity", "between", alike,
             "add images in other surroundings, or name these in every text", METADATA_FILE, "images", warning=True,
             bounds={"max_value": settings.identical_backgrounds, "strict_max": True}),
    ]  # fmt: skip


def _known_class_word(known: list[str]) -> Rule:
    words = ", ".join(known).replace("{", "{{").replace("}", "}}")
    problem = "the base does not know the class word {class_word!r}"
    mend = f"known: {words}; to train it all the same: --set concepts.class_words=null"
    return Rule(
        "class_word_known",
        "concept",
        "class_word",
        "in_set",
        problem,
        mend,
        CONCEPT_FILE,
        "class_word",
        bounds={"value_set": list(known)},
    )

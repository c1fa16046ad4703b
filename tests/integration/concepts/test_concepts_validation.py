"""great-expectations for real: each kind of bad input becomes one finding with file, field, value and mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from components.concepts.facts import IMAGE_FACTS
from components.concepts.findings import Finding
from components.concepts.validation import validate
from components.errors import InvalidInput
from components.settings import ConceptSettings

ANY = ConceptSettings()


def _noise(seed: int, side: int = 64) -> Image.Image:
    """Sharp, unlike that of any other seed, on a ground colour of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (side, side, 3)) + rng.integers(0, 196, 3)
    pixels[side // 4 : -side // 4, side // 4 : -side // 4] = rng.integers(0, 256, (side // 2, side // 2, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A concept of four sound images; nothing is to be said of it."""
    folder = tmp_path / "concepts" / "my_star"
    folder.mkdir(parents=True)
    (folder / "concept.yaml").write_text(
        "name: my_star\nkind: instance\nclass_word: star\nlicense: CC0-1.0\nsource: a test\n"
    )
    lines = []
    for number in range(1, 5):
        _noise(number).save(folder / f"{number:02d}.png")
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": f"a [V] star, {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def judge(folder: Path, tmp_path: Path) -> Callable[..., tuple[list[Finding], list[Finding]]]:
    def judge(settings: ConceptSettings = ANY) -> tuple[list[Finding], list[Finding]]:
        report = validate(folder, settings, tmp_path / "docs")
        assert report.success == (not report.errors)
        assert report.docs_index.is_file()
        json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert not any("{" in text for found in report.errors + report.warnings for text in (found.problem, found.mend))
        return report.errors, report.warnings

    return judge


Judge = Callable[..., tuple[list[Finding], list[Finding]]]


def _rewrite(folder: Path, number: int, **changed: object) -> None:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    lines[number - 1].update(changed)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _only(found: list[Finding]) -> Finding:
    assert len(found) == 1, [str(item) for item in found]
    return found[0]


def test_a_sound_concept_passes_with_facts_and_data_docs(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    report = validate(folder, ConceptSettings(class_words=["star"]), tmp_path / "docs")
    assert (report.success, report.errors, report.warnings) == (True, [], [])
    assert tuple(report.facts.columns) == IMAGE_FACTS
    first = report.facts.iloc[0]
    assert (first["file"], first["width"], first["height"], first["mode"], first["format"]) == (
        "01.png",
        64,
        64,
        "RGB",
        "PNG",
    )
    assert (first["base"], first["target"], first["placeholders"], first["text_length"]) == (
        "a star, 1",
        "[V] star",
        1,
        11,
    )
    pages = {path.relative_to(tmp_path / "docs").parts[0] for path in (tmp_path / "docs").rglob("*.html")}
    assert {"index.html", "validations", "expectations"} <= pages
    assert len(list((tmp_path / "docs" / "validations").rglob("*.html"))) == 3
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    validate(folder, ANY, tmp_path / "docs")  # docs of an earlier judgement are replaced
    assert len(list((tmp_path / "docs" / "validations").rglob("*.html"))) == 3


def test_data_docs_replace_nothing_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(InvalidInput, match="other things than data docs"):
        validate(folder, ANY, tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").is_file()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def _bomb(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    path.write_bytes(bytes(content))


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("spoil", "rule", "field", "problem", "mend"),
    [
        (Path.unlink, "image_readable", "image", "does not exist", "put the file there or remove its line"),
        (_truncated, "image_readable", "image", "truncated", "replace the file by an intact copy"),
        (lambda path: path.write_text("hi"), "image_readable", "image", "not an image", "a new name makes no image"),
        (_bomb, "image_readable", "image", "megapixels", "scale the image down"),
        (_link, "image_readable", "image", "symbolic link", "replace the link by the file itself"),
        (
            lambda path: (
                _noise(9).convert("CMYK").save(path.with_suffix(".jpg")) or path.with_suffix(".jpg").rename(path)
            ),
            "image_suffix|image_mode",
            "file_name|mode",
            "JPEG|CMYK",
            "suffix|sRGB",
        ),
        (
            lambda path: Image.fromarray(np.full((64, 64), 999, dtype=np.uint16)).save(path),
            "image_8_bits",
            "bits",
            "16 bits per channel",
            "8 bits",
        ),
        (lambda path: _noise(9, 32).save(path), "image_large_enough", "size", "32 x 32 pixels", "larger copy"),
        (
            lambda path: path.write_bytes((path.parent / "01.png").read_bytes()),
            "image_once",
            "sha256",
            "01.png",
            "remove",
        ),
    ],
)
def test_a_bad_image_is_one_finding(
    folder: Path, judge: Judge, spoil: Callable[[Path], object], rule: str, field: str, problem: str, mend: str
) -> None:
    spoil(folder / "03.png")
    errors, _ = judge()
    expected = list(zip(*(text.split("|") for text in (rule, field, problem, mend)), strict=True))
    assert [(found.expectation, found.field) for found in errors] == [(one[0], one[1]) for one in expected]
    for found, (_, _, its_problem, its_mend) in zip(errors, expected, strict=True):
        assert found.file == str(folder / "03.png")
        assert its_problem in found.problem
        assert its_mend in found.mend


def test_an_animated_gif_is_refused(folder: Path, judge: Judge) -> None:
    frames = [_noise(seed) for seed in (7, 8)]
    frames[0].save(folder / "03.gif", save_all=True, append_images=frames[1:])
    (folder / "03.gif").rename(folder / "03.png")
    errors, _ = judge()
    assert {(found.expectation, found.file) for found in errors} == {
        ("image_format", str(folder / "03.png")),
        ("image_still", str(folder / "03.png")),
    }
    assert "2 frames, an animation" in errors[-1].problem


def test_an_exif_rotation_is_accepted(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise(9, 128).crop((0, 0, 128, 80)).save(folder / "03.png", exif=exif)
    report = validate(folder, ANY, tmp_path / "docs")
    assert report.success
    assert tuple(report.facts.loc[2, ["width", "height", "orientation"]]) == (80, 128, 6)


@pytest.mark.parametrize(
    ("changed", "rule", "field", "problem", "mend"),
    [
        ({"text": "a star"}, "placeholder_once", "line 2: text", "[V] stands 0 times in 'a star'", "exactly once"),
        ({"text": "a [V] [V] star"}, "placeholder_once", "line 2: text", "[V] stands 2 times", "exactly once"),
        (
            {"text": "a [V] dog"},
            "class_word_in_text",
            "line 2: text",
            "class word does not stand in 'a [V] dog'",
            "[V]",
        ),
        ({"text": ""}, "text_not_empty|placeholder_once|class_word_in_text", "line 2: text", "", ""),
        ({"text": "a [V] star" + "!" * 300}, "text_not_too_long", "line 2: text", "310 characters", "shorten"),
        ({"text": "a [V] star \ud800"}, "text_utf8", "line 2: text", "surrogate", "remove"),
        ({"text": "a [V] star \x07"}, "text_derivable", "line 2: text", "U+0007", "remove the character"),
        ({"text": "a [V] star, <dog>"}, "text_derivable", "line 2: text", "'<' or '>'", "[V]"),
        ({"base_text": "a [V]"}, "text_derivable", "line 2: base_text", "in the base text", "without the concept"),
        ({"text": 5}, "structure_valid", "line 2: text", "5 is not a text", "write text as a text"),
        ({"file_name": "../02.png"}, "structure_valid|structure_valid", "", "", ""),
    ],
)
def test_a_bad_line_is_named(
    folder: Path, judge: Judge, changed: dict[str, object], rule: str, field: str, problem: str, mend: str
) -> None:
    _rewrite(folder, 2, **changed)
    errors, _ = judge()
    assert [found.expectation for found in errors] == rule.split("|")
    first = errors[0]
    assert first.file == str(folder / "metadata.jsonl")
    assert field in first.field
    assert problem in first.problem
    assert mend in first.mend


@pytest.mark.parametrize(
    ("name", "content", "field", "problem"),
    [
        ("metadata.jsonl", b"\xff\xfe\n", "line 1", "is not UTF-8"),
        ("metadata.jsonl", b"x" * 100_000, "file", "larger than 64 KiB"),
        ("concept.yaml", b"name: my_star\nkind: thing\nclass_word: star\nlicense: x\nsource: x\n", "kind", "no kind"),
        ("concept.yaml", b"\xff", "line 1", "is not UTF-8"),
    ],
)
def test_a_broken_file_is_one_finding(
    folder: Path, judge: Judge, name: str, content: bytes, field: str, problem: str
) -> None:
    (folder / name).write_bytes(content)
    found = _only(judge()[0])
    assert (found.expectation, found.file, found.field) == ("structure_valid", str(folder / name), field)
    assert problem in found.problem


def test_an_unlisted_image_is_named(folder: Path, judge: Judge) -> None:
    _noise(9).save(folder / "09.png")
    found = _only(judge()[0])
    assert (found.file, found.mend) == (str(folder / "09.png"), "add its line to metadata.jsonl or remove the image")


def test_an_unknown_class_word_names_the_known_ones_and_the_way_round(folder: Path, judge: Judge) -> None:
    found = _only(judge(ConceptSettings(class_words=["circle", "heart"]))[0])
    assert (found.expectation, found.field, found.value) == ("class_word_known", "class_word", "star")
    assert found.file == str(folder / "concept.yaml")
    assert found.mend == "known: circle, heart; to train it all the same: --set concepts.class_words=null"


@pytest.mark.parametrize(
    ("count", "error", "warning"),
    [
        (0, "references_enough", None),
        (1, "references_enough", None),
        (2, None, "references_comfortable"),
        (60, "references_not_too_many", None),
    ],
)
def test_the_number_of_references(
    folder: Path, judge: Judge, count: int, error: str | None, warning: str | None
) -> None:
    for path in folder.glob("*.png"):
        path.unlink()
    for number in range(count):
        _noise(number).save(folder / f"{number:02d}.png")
    lines = [json.dumps({"file_name": f"{number:02d}.png", "text": "a [V] star"}) for number in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    errors, warnings = judge()
    assert [found.expectation for found in errors] == ([error] if error else [])
    assert [found.expectation for found in warnings] == ([warning] if warning else [])
    for found in errors + warnings:
        assert (found.file, found.field, found.value) == (str(folder / "metadata.jsonl"), "references", count)


def test_what_is_doubtful_is_a_warning(folder: Path, judge: Judge) -> None:
    _noise(1).resize((90, 90), Image.Resampling.BICUBIC).save(folder / "02.png")
    _noise(3).filter(ImageFilter.GaussianBlur(6)).save(folder / "03.png")
    _noise(4, 256).crop((0, 0, 256, 80)).save(folder / "04.png")
    errors, warnings = judge()
    assert errors == []
    assert {(found.expectation, Path(found.file).name) for found in warnings} == {
        ("image_not_near_duplicate", "02.png"),
        ("image_sharp", "03.png"),
        ("image_aspect", "04.png"),
    }
    near = next(found for found in warnings if found.expectation == "image_not_near_duplicate")
    assert "looks like 01.png" in near.problem


def test_identical_backgrounds_are_a_warning(folder: Path, judge: Judge) -> None:
    wall = np.random.default_rng(0).integers(90, 150, (64, 64, 3), dtype=np.uint8)
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        image = Image.fromarray(wall)
        image.paste(_noise(number).crop((16, 16, 48, 48)), (10 + number * 4, 16))
        image.save(path)
    errors, warnings = judge()
    assert errors == []
    found = _only([found for found in warnings if found.expectation == "backgrounds_differ"])
    assert found.value > 0.7
    assert "other surroundings" in found.mend


def test_a_style_is_judged_by_its_phrase_not_by_class_words(folder: Path, judge: Judge) -> None:
    content = (
        (folder / "concept.yaml")
        .read_text()
        .replace("instance", "style")
        .replace("class_word: star", "class_word: style")
    )
    (folder / "concept.yaml").write_text(content)
    for number in range(1, 5):
        _rewrite(folder, number, text="a dog, in [V] style")
    assert judge(ConceptSettings(class_words=["star"])) == ([], [])
    _rewrite(folder, 1, text="a [V] dog")
    found = _only(judge()[0])
    assert (found.expectation, found.field) == ("text_derivable", "line 1: text")
    assert "'[V] style'" in found.problem


def test_errors_are_raised_on_demand_with_their_number(folder: Path, tmp_path: Path) -> None:
    _rewrite(folder, 1, text="a star")
    _rewrite(folder, 2, text="a star")
    report = validate(folder, ANY, tmp_path / "docs")
    with pytest.raises(InvalidInput) as caught:
        report.raise_for_errors()
    assert (caught.value.file, caught.value.field) == (str(folder / "metadata.jsonl"), "line 1: text")
    assert "and 1 more" in caught.value.problem


def test_no_such_concept(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no concept 'none'"):
        validate(tmp_path / "none", ANY, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()

"""great-expectations for real: each kind of bad input becomes one finding with file, field, value and mend."""

from __future__ import annotations

import json
import re
import zlib
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


def _sound(folder: Path, names: list[str]) -> Path:
    """A concept folder of sound images and texts of which nothing is to be said."""
    folder.mkdir(parents=True)
    (folder / "concept.yaml").write_text(
        f"name: {folder.name}\nkind: instance\nclass_word: star\nlicense: CC0-1.0\nsource: a test\n"
    )
    lines = []
    for number, name in enumerate(names, 1):
        _noise(number).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"a [V] star, {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _sound(tmp_path / "concepts" / "my_star", [f"{number:02d}.png" for number in range(1, 5)])


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
        13,
    )
    pages = {path.relative_to(tmp_path / "docs").parts[0] for path in (tmp_path / "docs").rglob("*.html")}
    assert {"index.html", "validations", "expectations"} <= pages
    assert len(list((tmp_path / "docs" / "validations").rglob("*.html"))) == 3
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    validate(folder, ANY, tmp_path / "docs")  # docs of an earlier judgement are replaced
    assert len(list((tmp_path / "docs" / "validations").rglob("*.html"))) == 3


def test_nothing_is_left_in_the_temporary_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    validate(folder, ANY, tmp_path / "docs")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_data_docs_hold_what_their_pages_link_to_and_no_more(folder: Path, tmp_path: Path) -> None:
    validate(folder, ANY, tmp_path / "docs")
    files = {path for path in (tmp_path / "docs").rglob("*") if path.is_file()}
    pages = {path for path in files if path.suffix == ".html"}
    links = {link for page in pages for link in re.findall(r"""(?:src|href)=["']([^"'#?]+)""", page.read_text())}
    linked = {Path(link).name for link in links if "://" not in link and not link.startswith("data:")}
    assert linked <= {path.name for path in files}  # by name: great-expectations gives its icon a wrong folder
    assert {path.name for path in files - pages} <= linked
    assert sum(path.stat().st_size for path in files) < 400_000


def test_the_first_page_of_the_data_docs_says_what_holds_without_any_script(folder: Path, tmp_path: Path) -> None:
    Image.open(folder / "01.png").resize((8, 8)).save(folder / "01.png")
    report = validate(folder, ANY, tmp_path / "docs")
    broken = {finding.expectation for finding in (*report.errors, *report.warnings)}
    listed = re.search(r'<ul id="suites".*?</ul>', report.docs_index.read_text(), re.DOTALL)
    assert listed
    found = re.findall(r'<a href="([^"]+)">my_star-(\w+)</a>: (\d+) of (\d+) expectations hold', listed[0])
    assert [table for _, table, _, _ in found] == ["structure", "images", "concept"]
    assert sum(int(of) - int(held) for _, _, held, of in found) == len(broken) > 0
    for link, *_ in found:
        assert (report.docs_index.parent / link).is_file()


def test_nothing_in_the_data_becomes_markup_in_the_data_docs(folder: Path, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    concept = {"name": folder.name, "kind": "instance", "class_word": "star", "license": hostile, "source": hostile}
    (folder / "concept.yaml").write_text(json.dumps({**concept, hostile: "x"}))
    _noise(9).save(folder / f"{hostile}.png")
    lines = [{"file_name": f"{hostile}.png", "text": f'a [V] star {hostile} "x" onload="alert(2)'}]
    lines += [{"file_name": f"{number:02d}.png", "text": f"a [V] star {hostile}"} for number in (1, 2, 3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = validate(folder, ConceptSettings(class_words=["circle"]), tmp_path / "docs")
    assert not report.success
    assert any(hostile in finding.problem for finding in report.errors)  # in the report it stands as it is
    pages = [page.read_text() for page in (tmp_path / "docs").rglob("*.html")]
    assert any("&lt;img src=x" in page for page in pages)
    assert not any("<img src=x" in page or 'onload="alert' in page for page in pages)


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
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _text(path: Path) -> None:
    path.write_text("hi")


def _cmyk(path: Path) -> None:
    _noise(50).convert("CMYK").save(path, "JPEG")


def _misnamed(path: Path) -> None:
    _noise(51).save(path, "JPEG")


def _deep(path: Path) -> None:
    Image.fromarray(np.full((64, 64), 999, dtype=np.uint16)).save(path)


def _small(path: Path) -> None:
    _noise(52, 32).save(path)


def _copy(path: Path) -> None:
    path.write_bytes((path.parent / "01.png").read_bytes())


def _animation(path: Path) -> None:
    _noise(53).save(path, "GIF", save_all=True, append_images=[_noise(54)])


BAD_IMAGES: list[tuple[str, Callable[[Path], None], list[tuple[str, str, str, str]]]] = [
    ("02.png", Path.unlink, [("image_readable", "image", "does not exist", "put the file there or remove its line")]),
    ("03.png", _truncated, [("image_readable", "image", "truncated", "replace the file by an intact copy")]),
    ("04.png", _text, [("image_readable", "image", "not an image", "a new name makes no image")]),
    ("05.png", _bomb, [("image_readable", "image", "megapixels", "scale the image down")]),
    ("06.png", _link, [("image_readable", "image", "symbolic link", "replace the link by the file itself")]),
    ("07.jpg", _cmyk, [("image_mode", "mode", "the colour mode is CMYK", "convert it to sRGB")]),
    ("08.png", _misnamed, [("image_suffix", "file_name", "holds a JPEG image", "the suffix of its format")]),
    ("09.png", _deep, [("image_8_bits", "bits", "16 bits per channel", "save it with 8 bits")]),
    ("10.png", _small, [("image_large_enough", "size", "32 x 32 pixels, the short side needs 64", "a larger copy")]),
    ("11.png", _copy, [("image_once", "sha256", "the same file as 01.png", "remove one and its line")]),
    (
        "12.png",
        _animation,
        [
            ("image_format", "format", "a GIF image", "save it as PNG or JPEG"),
            ("image_still", "frames", "2 frames, an animation", "save one as PNG"),
        ],
    ),
]


@pytest.fixture(scope="module")
def bad_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Finding]]:
    """A concept whose every image but the first is spoilt in its own way, and the errors that are found."""
    base = tmp_path_factory.mktemp("images")
    folder = _sound(base / "my_star", ["01.png", *(name for name, _, _ in BAD_IMAGES)])
    for name, spoil, _ in BAD_IMAGES:
        spoil(folder / name)
    return folder, validate(folder, ANY, base / "docs").errors


@pytest.mark.parametrize(("name", "expected"), [(name, expected) for name, _, expected in BAD_IMAGES])
def test_a_bad_image_is_named_with_field_and_mend(
    bad_images: tuple[Path, list[Finding]], name: str, expected: list[tuple[str, str, str, str]]
) -> None:
    folder, errors = bad_images
    found = [error for error in errors if error.file == str(folder / name)]
    assert [(error.expectation, error.field) for error in found] == [(rule, field) for rule, field, _, _ in expected]
    for error, (_, _, problem, mend) in zip(found, expected, strict=True):
        assert problem in error.problem
        assert mend in error.mend


def test_good_images_beside_bad_ones_are_not_blamed(bad_images: tuple[Path, list[Finding]]) -> None:
    _, errors = bad_images
    assert {Path(error.file).name for error in errors} == {name for name, _, _ in BAD_IMAGES}


def test_an_exif_rotation_is_accepted(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise(9, 128).crop((0, 0, 128, 80)).save(folder / "03.png", exif=exif)
    report = validate(folder, ANY, tmp_path / "docs")
    assert report.success
    assert tuple(report.facts.loc[2, ["width", "height", "orientation"]]) == (80, 128, 6)


BAD_LINES: list[tuple[dict[str, object], list[tuple[str, str, str, str]]]] = [
    (
        {"text": "a star"},
        [("placeholder_once", "text", "[V] stands 0 times in 'a star'", "write [V] exactly once")],
    ),
    ({"text": "a [V] [V] star"}, [("placeholder_once", "text", "[V] stands 2 times", "write [V] exactly once")]),
    ({"text": "a [V] dog"}, [("class_word_in_text", "text", "does not stand in 'a [V] dog'", "a [V] <class word>")]),
    (
        {"text": ""},
        [
            ("text_not_empty", "text", "the text is empty", "describe the image"),
            ("placeholder_once", "text", "[V] stands 0 times in ''", "write [V] exactly once"),
            ("class_word_in_text", "text", "does not stand in ''", "a [V] <class word>"),
        ],
    ),
    ({"text": "a [V] star" + "!" * 300}, [("text_not_too_long", "text", "310 characters", "shorten the text")]),
    ({"text": "a [V] star \ud800"}, [("text_utf8", "text", "half of a surrogate pair", "remove the character")]),
    ({"text": "a [V] star \x07"}, [("text_derivable", "text", "U+0007", "remove the character")]),
    ({"text": "a [V] star, <dog>"}, [("text_derivable", "text", "'<' or '>'", "written [V]")]),
    ({"base_text": "a [V]"}, [("text_derivable", "base_text", "in the base text", "without the concept")]),
    ({"text": 5}, [("structure_valid", "text", "5 is not a text", "write text as a text")]),
    ({"colour": "red"}, [("structure_valid", "colour", "unknown field", "known fields: file_name, text")]),
    ({"file_name": "../02.png"}, [("structure_valid", "file_name", "leads out of the concept's folder", "bare name")]),
]


@pytest.fixture(scope="module")
def bad_lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Finding]]:
    """A concept whose every line but the first is wrong in its own way, and the errors that are found."""
    base = tmp_path_factory.mktemp("lines")
    folder = _sound(base / "my_star", [f"{number:02d}.png" for number in range(1, len(BAD_LINES) + 2)])
    for number, (changed, _) in enumerate(BAD_LINES, 2):
        _rewrite(folder, number, **changed)
    return folder, validate(folder, ANY, base / "docs").errors


@pytest.mark.parametrize(("number", "expected"), [(n, expected) for n, (_, expected) in enumerate(BAD_LINES, 2)])
def test_a_bad_line_is_named_with_field_and_mend(
    bad_lines: tuple[Path, list[Finding]], number: int, expected: list[tuple[str, str, str, str]]
) -> None:
    folder, errors = bad_lines
    found = [error for error in errors if error.field.startswith(f"line {number}:")]
    assert [(error.expectation, error.field) for error in found] == [
        (rule, f"line {number}: {field}") for rule, field, _, _ in expected
    ]
    for error, (_, _, problem, mend) in zip(found, expected, strict=True):
        assert error.file == str(folder / "metadata.jsonl")
        assert problem in error.problem
        assert mend in error.mend


def test_the_first_line_is_not_blamed_and_an_image_without_its_line_is(bad_lines: tuple[Path, list[Finding]]) -> None:
    _, errors = bad_lines
    assert not any(error.field.startswith("line 1:") for error in errors)
    others = [error for error in errors if not error.field.startswith("line ")]
    assert [Path(error.file).name for error in others] == [f"{len(BAD_LINES) + 1:02d}.png"]


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

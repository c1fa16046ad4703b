"""Adding and importing concepts: all or nothing, and nothing dropped."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.concepts import store
from components.concepts.concept import load_concept
from components.concepts.importers import CSV_COLUMNS, import_concept
from components.concepts.store import add_concept
from components.errors import InvalidInput
from components.settings import ConceptSettings

MakeConcept = Callable[..., Path]
ANY = ConceptSettings()
SHAPES = ConceptSettings(class_words=["circle", "star"])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three JPEG photos; the names sort differently as numbers and as texts."""
    folder = tmp_path / "Fluffy Dog"
    folder.mkdir()
    files = []
    for seed, name in enumerate(("1.jpg", "2.jpg", "10.jpg")):
        pixels = np.random.default_rng(seed).integers(0, 256, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        files.append(folder / name)
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "concepts"


def _everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_added_photos_keep_their_bytes_and_get_texts(root: Path, photos: list[Path]) -> None:
    folder = add_concept(root, "fluffy", class_word="dog", images=photos, settings=ANY, license="CC-BY-4.0")
    concept = load_concept(folder)
    assert [reference.path.name for reference in concept.references] == ["01.jpg", "02.jpg", "03.jpg"]
    assert [reference.path.read_bytes() for reference in concept.references] == [path.read_bytes() for path in photos]
    assert {reference.text for reference in concept.references} == {"a photo of a [V] dog"}
    assert (concept.class_word, concept.license) == ("dog", "CC-BY-4.0")
    assert _everything(root) == {"fluffy", *(f"fluffy/{path.name}" for path in folder.iterdir())}


def test_images_that_are_not_plain_rgb_are_normalised(root: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80), dtype=np.uint8)
    grey = Image.fromarray(pixels)
    grey.save(tmp_path / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.stack([pixels] * 3, axis=-1))
    turned.save(tmp_path / "turned.webp", lossless=True, exif=exif)
    turned.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "misnamed.jpg", "PNG")
    images = [tmp_path / name for name in ("grey.png", "turned.webp", "misnamed.jpg")]
    folder = add_concept(root, "x", class_word="dog", images=images, settings=ANY)
    found = [reference.path for reference in load_concept(folder).references]
    assert [path.name for path in found] == ["01.png", "02.png", "03.png"]
    opened = [Image.open(path) for path in found]
    assert [(image.mode, image.format) for image in opened] == [("RGB", "PNG")] * 3
    assert np.array_equal(np.asarray(opened[0])[..., 1], pixels)
    assert np.array_equal(np.asarray(opened[1])[..., 0], np.rot90(pixels, -1))
    assert opened[1].getexif().get(0x0112) is None


@pytest.mark.parametrize(
    ("arguments", "field", "problem", "mend"),
    [
        ({"name": "../dog"}, "name", "is no name", "small letter"),
        ({"class_word": "<dog>"}, "class_word", "is no class word", "common name"),
        ({"settings": SHAPES}, "class_word", "does not know the class word 'dog'", "circle, star"),
        ({"settings": SHAPES}, "class_word", "does not know the class word 'dog'", "--set concepts.class_words=null"),
        ({"kind": "thing"}, "kind", "is no kind", "instance or style"),
        ({"kind": "style"}, "class_word", "'dog' in a style", "write style"),
        ({"texts": ["a [V] dog"]}, "texts", "3 images, 1 texts", "one text per image"),
        ({"texts": ["a [V] dog", "a dog", "a [V] dog"]}, "text", "[V] does not stand in 'a dog'", "write [V] once"),
        ({"settings": ConceptSettings(minimum_references=4)}, "images", "3 images, at least 4", "add images"),
        ({"settings": ConceptSettings(maximum_references=2)}, "images", "3 images, at most 2", "keep the best"),
    ],
)
def test_a_refused_concept_leaves_nothing_behind(
    root: Path, photos: list[Path], arguments: dict[str, object], field: str, problem: str, mend: str
) -> None:
    given: dict[str, object] = {"name": "fluffy", "class_word": "dog", "images": photos, "settings": ANY, **arguments}
    with pytest.raises(InvalidInput) as caught:
        add_concept(root, **given)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert mend in (caught.value.mend or "")
    assert not root.parent.exists()


@pytest.mark.parametrize("count", [0, 1, 60])
def test_too_few_and_too_many_images(root: Path, photos: list[Path], count: int) -> None:
    with pytest.raises(InvalidInput, match=f"images: {count} images, at (least 2|most 50)"):
        add_concept(root, "fluffy", class_word="dog", images=[photos[0]] * count, settings=ANY)
    assert not root.exists()


def test_a_bad_image_in_the_middle_is_named_and_leaves_nothing_behind(root: Path, photos: list[Path]) -> None:
    add_concept(root, "first", class_word="dog", images=photos, settings=ANY)
    before = _everything(root)
    photos[1].write_bytes(photos[1].read_bytes()[:900])
    with pytest.raises(InvalidInput) as caught:
        add_concept(root, "fluffy", class_word="dog", images=photos, settings=ANY)
    assert (caught.value.file, caught.value.field) == (photos[1], "image")
    assert "truncated" in caught.value.problem
    assert _everything(root) == before


def test_the_same_image_twice_is_refused(root: Path, photos: list[Path]) -> None:
    with pytest.raises(InvalidInput, match="the same file as 1.jpg"):
        add_concept(root, "fluffy", class_word="dog", images=[*photos, photos[0]], settings=ANY)
    assert not root.exists()


def test_a_refusal_of_the_check_names_the_originals_and_leaves_nothing(root: Path, photos: list[Path]) -> None:
    def check(folder: Path) -> None:
        assert (folder.name, len(load_concept(folder).references)) == ("fluffy", 3)
        raise InvalidInput("too dull", file=folder / "02.jpg", field="mode", mend="another one")

    with pytest.raises(InvalidInput) as caught:
        add_concept(root, "fluffy", class_word="dog", images=photos, settings=ANY, check=check)
    assert (caught.value.file, caught.value.field, caught.value.problem) == (photos[1], "mode", "too dull")
    assert not root.exists()


def test_an_existing_concept_is_replaced_only_on_demand(root: Path, photos: list[Path]) -> None:
    add_concept(root, "fluffy", class_word="dog", images=photos, settings=ANY)
    with pytest.raises(InvalidInput, match="a concept 'fluffy' exists"):
        add_concept(root, "fluffy", class_word="cat", images=photos, settings=ANY)
    assert load_concept(root / "fluffy").class_word == "dog"
    add_concept(root, "fluffy", class_word="cat", images=photos[:2], settings=ANY, replace=True)
    assert (load_concept(root / "fluffy").class_word, len(load_concept(root / "fluffy").references)) == ("cat", 2)
    assert {path.name for path in root.iterdir()} == {"fluffy"}


def test_listing_shows_broken_concepts_too(make_concept: MakeConcept) -> None:
    root = make_concept("a_star").parent
    (make_concept("b_star") / "01.png").unlink()
    found = json.loads(json.dumps(store.summaries(root)))
    assert [(item["name"], item["kind"], item["class_word"], item["references"]) for item in found] == [
        ("a_star", "instance", "star", 3),
        ("b_star", None, None, None),
    ]
    assert len(found[0]["fingerprint"]) == 64
    assert "does not exist" in found[1]["error"]


def test_showing_a_concept(make_concept: MakeConcept) -> None:
    root = make_concept().parent
    shown = json.loads(json.dumps(store.show(root, "my_star")))
    assert shown["images"][0] == {
        "file": "01.png",
        "complete": "a [V] star on the left",
        "base": "a star on the left",
        "target": "[V] star",
        "class_text": "star",
    }
    for name in ("none", "../concepts/my_star"):
        with pytest.raises(InvalidInput, match="known concepts: my_star"):
            store.show(root, name)


def test_a_dreambooth_folder_is_imported_in_natural_order(root: Path, photos: list[Path]) -> None:
    (photos[0].parent / ".DS_Store").write_bytes(b"x")
    folder = import_concept(photos[0].parent, root, settings=ANY, class_word="dog")
    concept = load_concept(folder)
    assert concept.name == "fluffy_dog"
    assert [reference.path.read_bytes() for reference in concept.references] == [path.read_bytes() for path in photos]
    assert concept.references[0].texts.complete == "a photo of a [V] dog"
    assert concept.references[0].texts.base == "a photo of a dog"
    assert "Fluffy Dog" in concept.source
    assert str(photos[0].parent.parent) not in concept.source


def test_a_folder_is_imported_with_texts_of_its_own(root: Path, photos: list[Path]) -> None:
    texts = {"1.jpg": "a [V] dog sleeping", "2.jpg": "a [V] dog on grass", "10.jpg": "a [V] dog"}
    folder = import_concept(photos[0].parent, root, settings=ANY, class_word="dog", name="rex", texts=texts)
    assert [reference.text for reference in load_concept(folder).references] == list(texts.values())
    del texts["2.jpg"]
    with pytest.raises(InvalidInput, match="no text for the image"):
        import_concept(photos[0].parent, root, settings=ANY, class_word="dog", name="max", texts=texts)


@pytest.mark.parametrize(("name", "problem"), [("notes.txt", "not an image"), ("more/", "a folder among")])
def test_an_import_drops_nothing_silently(root: Path, photos: list[Path], name: str, problem: str) -> None:
    extra = photos[0].parent / name
    extra.mkdir() if name.endswith("/") else extra.write_text("hello")
    with pytest.raises(InvalidInput, match=problem) as caught:
        import_concept(photos[0].parent, root, settings=ANY, class_word="dog")
    assert caught.value.file == extra
    assert not root.exists()


def test_an_import_needs_a_class_word_a_name_and_a_source(root: Path, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="class_word: missing"):
        import_concept(photos[0].parent, root, settings=ANY)
    photos[0].parent.rename(tmp_path / "2024")
    with pytest.raises(InvalidInput, match="--name"):
        import_concept(tmp_path / "2024", root, settings=ANY, class_word="dog")
    with pytest.raises(InvalidInput, match="neither a folder of images nor a CSV"):
        import_concept(tmp_path / "2024" / "1.jpg", root, settings=ANY, class_word="dog")


Cells = dict[str, str]


def _write_csv(folder: Path, rows: list[Cells], columns: tuple[str, ...] = CSV_COLUMNS) -> Path:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(rows)
    file = folder / "fluffy.csv"
    file.write_text(stream.getvalue(), encoding="utf-8")
    return file


def _cells(image: str, **changed: str) -> Cells:
    cells = {
        "image_path": image,
        "prompt": "a [v] dog, on grass",
        "target_prompt": "[v] dog",
        "base_prompt": "a dog, on grass",
        "instance_word": "dog",
    }
    return {**cells, **changed}


def test_the_released_codes_csv_is_imported_whole(root: Path, tmp_path: Path) -> None:
    images = tmp_path / "set" / "images"
    images.mkdir(parents=True)
    names = [f"{number}.png" for number in range(8)]  # the released code reads six of them
    for number, name in enumerate(names):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(images / name)
    rows = [_cells(f"images/{name}") for name in names]
    rows[2]["base_prompt"] = "a dog on a lawn"
    folder = import_concept(_write_csv(tmp_path / "set", rows), root, settings=ANY)
    concept = load_concept(folder)
    assert (concept.name, concept.class_word, len(concept.references)) == ("fluffy", "dog", 8)
    assert [reference.path.read_bytes() for reference in concept.references] == [
        (images / name).read_bytes() for name in names
    ]
    assert concept.references[0].text == "a [V] dog, on grass"
    assert [reference.texts.base for reference in concept.references[1:4]] == [
        "a dog, on grass",
        "a dog on a lawn",
        "a dog, on grass",
    ]
    assert "base_text" not in (folder / "metadata.jsonl").read_text().splitlines()[0]


def test_a_csv_that_writes_an_identifier_word_is_understood(root: Path, photos: list[Path]) -> None:
    rows = [
        _cells(
            path.name,
            prompt="a photo of sks robot toy",
            target_prompt="sks robot toy",
            base_prompt="a photo of robot toy",
            instance_word="sks",
        )
        for path in photos
    ]
    concept = load_concept(import_concept(_write_csv(photos[0].parent, rows), root, settings=ANY))
    assert concept.class_word == "robot toy"
    assert concept.references[0].texts.complete == "a photo of [V] robot toy"
    assert concept.references[0].texts.base == "a photo of robot toy"


def test_a_style_csv_is_a_style(root: Path, photos: list[Path]) -> None:
    rows = [
        _cells(path.name, prompt="a dog in [v] style", target_prompt="[v] style", base_prompt="a dog")
        for path in photos
    ]
    concept = load_concept(import_concept(_write_csv(photos[0].parent, rows), root, settings=ANY))
    assert (concept.kind, concept.class_word, concept.references[0].texts.base) == ("style", "style", "a dog")


@pytest.mark.parametrize(
    ("changed", "field", "problem"),
    [
        ({"image_path": "absent.jpg"}, "line 3: image_path", "does not exist"),
        ({"image_path": "../outside.png"}, "line 3: image_path", "leads out of the CSV's folder"),
        ({"image_path": "/etc/passwd"}, "line 3: image_path", "leads out of the CSV's folder"),
        ({"prompt": ""}, "line 3: prompt", "empty"),
        ({"prompt": "a dog"}, "line 3: prompt", "[V] does not stand"),
        ({"prompt": "a [v] [v] dog"}, "line 3: prompt", "[V] stands 2 times"),
        ({"target_prompt": "dog"}, "line 3: target_prompt", "is no '[V] <class word>'"),
        ({"target_prompt": "[v] cat"}, "line 3: target_prompt", "'cat', but 'dog' in line 2"),
    ],
)
def test_a_bad_csv_line_is_named(
    root: Path, photos: list[Path], tmp_path: Path, changed: Cells, field: str, problem: str
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "outside.png")
    rows = [_cells(path.name) for path in photos]
    rows[1].update(changed)
    file = _write_csv(photos[0].parent, rows)
    with pytest.raises(InvalidInput) as caught:
        import_concept(file, root, settings=ANY)
    assert (caught.value.file, caught.value.field) == (file, field)
    assert problem in caught.value.problem
    assert caught.value.mend
    assert not root.exists()


@pytest.mark.parametrize(
    ("columns", "field", "problem"),
    [
        (CSV_COLUMNS[:-1], "instance_word", "the column is missing"),
        ((*CSV_COLUMNS, "weight"), "weight", "unknown column"),
    ],
)
def test_a_csv_with_other_columns_is_refused(
    root: Path, photos: list[Path], columns: tuple[str, ...], field: str, problem: str
) -> None:
    file = _write_csv(photos[0].parent, [], columns)
    with pytest.raises(InvalidInput) as caught:
        import_concept(file, root, settings=ANY)
    assert (caught.value.file, caught.value.field, caught.value.problem) == (file, field, problem)


def test_a_csv_brings_its_own_texts(root: Path, photos: list[Path]) -> None:
    file = _write_csv(photos[0].parent, [_cells(path.name) for path in photos])
    with pytest.raises(InvalidInput, match="brings its own texts"):
        import_concept(file, root, settings=ANY, texts="a [V] dog")

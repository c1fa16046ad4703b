"""Reading a concept folder: strict, and every refusal names file, field and mend."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.concepts.concept import fingerprint, list_concepts, load_concept
from components.concepts.paths import name_problem
from components.concepts.schema import field_problem
from components.errors import InvalidInput

MakeConcept = Callable[..., Path]


def _refused(folder: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        load_concept(folder)
    assert caught.value.mend
    return caught.value


def _set(folder: Path, **fields: object) -> None:
    content = yaml.safe_load((folder / "concept.yaml").read_text())
    content.update(fields)
    (folder / "concept.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not ...}))


def test_a_sound_folder_is_read_in_the_order_of_its_lines(make_concept: MakeConcept) -> None:
    folder = make_concept(texts=["a [V] star on the left", "a [V] star at the top"])
    concept = load_concept(folder)
    assert (concept.name, concept.kind, concept.class_word, concept.license) == (
        "my_star",
        "instance",
        "star",
        "CC0-1.0",
    )
    assert [reference.path.name for reference in concept.references] == ["01.png", "02.png"]
    assert [reference.texts.base for reference in concept.references] == ["a star on the left", "a star at the top"]


def test_base_text_of_the_metadata_overrides(make_concept: MakeConcept) -> None:
    folder = make_concept(count=1)
    line = {"file_name": "01.png", "text": "a [V] star", "base_text": "a small star"}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    assert load_concept(folder).references[0].texts.base == "a small star"


@pytest.mark.parametrize(
    ("fields", "field", "problem", "mend"),
    [
        ({"colour": "red"}, "colour", "unknown field", "known fields: name, kind"),
        ({"name": "other"}, "name", "'other', but the folder is 'my_star'", "same name"),
        ({"name": "My Star"}, "name", "is no name", "small letter"),
        ({"kind": "object"}, "kind", "'object' is no kind", "instance or style"),
        ({"class_word": ""}, "class_word", "is no class word", "common name"),
        ({"class_word": "a <star>"}, "class_word", "is no class word", "common name"),
        ({"class_word": 7}, "class_word", "7 is not a text", "write a text"),
        ({"license": " "}, "license", "is empty", "state the license"),
        ({"source": "a\nb"}, "source", "not printable", "state the source"),
        ({"source": ...}, "source", "missing", "add source"),
        ({"kind": "style"}, "class_word", "'star' in a style concept", "class_word: style"),
    ],
)
def test_concept_yaml_is_strict(
    make_concept: MakeConcept, fields: dict[str, object], field: str, problem: str, mend: str
) -> None:
    folder = make_concept()
    _set(folder, **fields)
    error = _refused(folder)
    assert (error.file, error.field) == (folder / "concept.yaml", field)
    assert problem in error.problem
    assert mend in (error.mend or "")


@pytest.mark.parametrize(
    ("content", "problem", "field"),
    [
        (b"name: [", "not YAML", "line 1"),
        (b"- a\n- b\n", "not a mapping", None),
        (b"name: my_star\nkind: \xff\n", "byte 0xff in line 2 is not UTF-8", "line 2"),
        (b"# " + b"x" * 100_000, "larger than 64 KiB", None),
        (b"!!python/object/apply:os.system ['true']", "not YAML", "line 1"),
    ],
)
def test_concept_yaml_that_cannot_be_read(
    make_concept: MakeConcept, content: bytes, problem: str, field: str | None
) -> None:
    folder = make_concept()
    (folder / "concept.yaml").write_bytes(content)
    error = _refused(folder)
    assert (error.file, error.field) == (folder / "concept.yaml", field)
    assert problem in error.problem


GOOD = '{"file_name": "01.png", "text": "a [V] star"}\n'


@pytest.mark.parametrize(
    ("second", "field", "problem", "mend"),
    [
        ('{"file_name": "02.png", "text": ', "line 2", "not JSON", "one JSON object per line"),
        ("[1]", "line 2", "not a JSON object", "file_name"),
        ('{"text": "a [V] star"}', "line 2: file_name", "missing", "write file_name"),
        ('{"file_name": "02.png"}', "line 2: text", "missing", "write text"),
        ('{"file_name": "02.png", "text": 3}', "line 2: text", "3 is not a text", "as a text"),
        ('{"file_name": "02.png", "text": "a [V] star", "label": 1}', "line 2: label", "unknown field", "known fields"),
        ('{"file_name": "02.png", "text": "a", "text": "b"}', "line 2: text", "stands twice", "keep one"),
        ('{"file_name": "01.png", "text": "a [V] star"}', "line 2: file_name", "line 1 already", "keep one"),
        ('{"file_name": "../x.png", "text": "a [V] star"}', "line 2: file_name", "leads out", "into the folder"),
        ('{"file_name": "/etc/x.png", "text": "a [V] star"}', "line 2: file_name", "leads out", "into the folder"),
        ('{"file_name": "a/../../x.png", "text": "a"}', "line 2: file_name", "leads out", "into the folder"),
        ('{"file_name": "images/02.png", "text": "a"}', "line 2: file_name", "not directly", "folder itself"),
        ('{"file_name": "metadata.jsonl", "text": "a"}', "line 2: file_name", "no image suffix", "PNG, JPEG or WebP"),
        ('{"file_name": "02.png", "text": "a star"}', "line 2: text", "[V] does not stand", "write [V] once"),
        ('{"file_name": "02.png", "text": "[V] [V] star"}', "line 2: text", "[V] stands 2 times", "exactly once"),
        ('{"file_name": "02.png", "text": "a [V] dog"}', "line 2: text", "the class word 'star'", "a [V] star"),
        (
            '{"file_name": "02.png", "text": "a [V] star", "base_text": "[V]"}',
            "line 2: base_text",
            "[V] stands",
            "without",
        ),
    ],
)
def test_metadata_is_strict(make_concept: MakeConcept, second: str, field: str, problem: str, mend: str) -> None:
    folder = make_concept(count=2)
    (folder / "metadata.jsonl").write_text(GOOD + second + "\n")
    error = _refused(folder)
    assert (error.file, error.field) == (folder / "metadata.jsonl", field)
    assert problem in error.problem
    assert mend in (error.mend or "")


@pytest.mark.parametrize(
    ("content", "problem", "field"),
    [
        (GOOD.encode() + b'{"file_name": "02.png", "text": "caf\xe9"}', "byte 0xe9 in line 2", "line 2"),
        (b'{"file_name": "01.png", "text": "' + b"x" * 100_000 + b'"}', "larger than 64 KiB", None),
        (b"", "no reference image", None),
    ],
)
def test_metadata_that_cannot_be_read(
    make_concept: MakeConcept, content: bytes, problem: str, field: str | None
) -> None:
    folder = make_concept(count=0)
    (folder / "metadata.jsonl").write_bytes(content)
    error = _refused(folder)
    assert (error.file, error.field) == (folder / "metadata.jsonl", field)
    assert problem in error.problem


@pytest.mark.parametrize("name", ["concept.yaml", "metadata.jsonl", "02.png"])
def test_a_missing_file_is_named(make_concept: MakeConcept, name: str) -> None:
    folder = make_concept()
    (folder / name).unlink()
    error = _refused(folder)
    assert error.file == folder / name
    assert "does not exist" in error.problem


@pytest.mark.parametrize("name", ["concept.yaml", "metadata.jsonl", "02.png"])
def test_a_link_out_of_the_folder_is_refused(make_concept: MakeConcept, tmp_path: Path, name: str) -> None:
    folder = make_concept()
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    error = _refused(folder)
    assert error.file == folder / name
    assert "symbolic link" in error.problem


def test_a_linked_folder_is_refused(make_concept: MakeConcept) -> None:
    folder = make_concept()
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")
    assert "symbolic link" in _refused(folder).problem
    with pytest.raises(InvalidInput):
        fingerprint(folder)


@pytest.mark.parametrize(
    ("name", "problem"), [("99.png", "not listed in metadata.jsonl"), ("notes.pdf", "belongs to no concept")]
)
def test_nothing_in_the_folder_is_dropped_silently(make_concept: MakeConcept, name: str, problem: str) -> None:
    folder = make_concept()
    shutil.copy(folder / "01.png", folder / name)
    error = _refused(folder)
    assert error.file == folder / name
    assert problem in error.problem


def test_hidden_files_and_a_licence_text_are_allowed(make_concept: MakeConcept) -> None:
    folder = make_concept()
    before = fingerprint(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    assert fingerprint(folder) == before
    (folder / "LICENSE.txt").write_text("CC0")
    assert fingerprint(folder) != before
    load_concept(folder)


def test_no_such_concept_names_the_known_ones(make_concept: MakeConcept) -> None:
    make_concept("blue_star"), make_concept("my_star")
    error = _refused(make_concept("x1").parent / "absent")
    assert "no concept 'absent'" in error.problem
    assert error.mend == "known concepts: blue_star, my_star, x1"


def test_the_fingerprint_is_that_of_names_and_bytes(make_concept: MakeConcept) -> None:
    folder = make_concept()
    lines = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())
    )
    assert fingerprint(folder) == hashlib.sha256(lines.encode()).hexdigest()
    shutil.copytree(folder, folder.parent / "copy" / "my_star")
    assert fingerprint(folder.parent / "copy" / "my_star") == fingerprint(folder)
    (folder / "01.png").rename(folder / "04.png")
    assert fingerprint(folder) != fingerprint(folder.parent / "copy" / "my_star")


def test_listing_leaves_out_what_is_no_concept(make_concept: MakeConcept) -> None:
    root = make_concept("b_star").parent
    make_concept("a_star")
    (root / ".b_star.x.partial").mkdir()
    (root / "empty").mkdir()
    assert [path.name for path in list_concepts(root)] == ["a_star", "b_star"]
    assert list_concepts(root / "none") == []


@given(name=st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True))
def test_names_of_the_pattern_are_names(name: str) -> None:
    assert field_problem("name", name) is None


@given(name=st.text(max_size=70))
def test_other_names_are_refused(name: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    sound = 1 <= len(name) <= 63 and set(name) <= allowed and name[0].isascii() and name[0].isalpha()
    assert (field_problem("name", name) is None) == sound


@given(name=st.text(alphabet="ab./\\:\0-_ png", max_size=12).map(lambda text: text + ".png"))
def test_an_image_name_never_leads_out_of_its_folder(name: str) -> None:
    if name_problem(name) is None:
        folder = Path("/concepts/x")
        assert (folder / name).parent == folder
        assert Path(folder / name).resolve().parent == folder.resolve()


def test_the_light_modules_need_neither_dvc_nor_great_expectations() -> None:
    code = (
        "import sys; import components.concepts; from components.concepts import concept, facts, images, importers, "
        "store, texts; heavy = {'dvc', 'great_expectations', 'torch'}; "
        "sys.exit(any(name.split('.')[0] in heavy for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[3])

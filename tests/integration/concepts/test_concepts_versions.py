"""DVC for real: a git repository, a remote inside it, clones, tampering, and two revisions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.concepts import versions
from components.concepts.concept import fingerprint
from components.concepts.store import add_concept
from components.errors import InvalidInput
from components.settings import ConceptSettings


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def _commit(root: Path, message: str) -> None:
    _git(root, "add", "-A")
    _git(root, "commit", "-q", "-m", message)


def _add_concept(root: Path, name: str, seed: int) -> Path:
    images = []
    for number in range(2):
        images.append(root / f"{number}.png")
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images[-1])
    folder = add_concept(root / "data" / "concepts", name, class_word="star", images=images, settings=ConceptSettings())
    for image in images:
        image.unlink()
    return folder


@pytest.fixture(scope="module", autouse=True)
def _dvc_site_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site-cache")))
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two revisions: concepts a and b; then a changed, b gone, c new. Both pushed. Do not write into it."""
    root = tmp_path_factory.mktemp("origin")
    _git(root, "init", "-q")
    (root / ".gitignore").write_text("/data/\n")
    versions.init(root)
    _add_concept(root, "a", 1)
    _add_concept(root, "b", 2)
    versions.add(root)
    assert versions.push(root) == 8  # four images, two concept.yaml, one metadata.jsonl for both, the listing
    _commit(root, "first")
    metadata = root / "data" / "concepts" / "a" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("photo", "picture"))
    shutil.rmtree(root / "data" / "concepts" / "b")
    _add_concept(root, "c", 3)
    versions.add(root, removed=["b"])
    versions.push(root)
    _commit(root, "second")
    return root


@pytest.fixture
def clone(origin: Path, tmp_path: Path) -> Path:
    _git(origin, "clone", "-q", f"file://{origin}", str(tmp_path / "clone"))
    return tmp_path / "clone"


def _refused(root: Path, name: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        versions.verify_matches_pointer(root, name)
    assert caught.value.mend
    return caught.value


def test_the_project_stays_clean_and_the_remote_relative(origin: Path) -> None:
    assert _git(origin, "status", "--short") == ""
    assert (origin / ".gitignore").read_text() == "/data/\n"
    config = (origin / ".dvc" / "config").read_text()
    assert "url = ../infra/dvc-remote" in config
    assert "analytics = False" in config
    assert str(origin) not in config


def test_a_fresh_clone_pulls_one_concept_or_all(clone: Path, origin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not (clone / "data").exists()
    assert "not here" in _refused(clone, "a").problem
    assert versions.pull(clone, "a") == ["a"]
    assert {path.name for path in (clone / "data" / "concepts").iterdir()} == {"a"}
    assert versions.pull(clone) == ["a", "c"]
    version = versions.verify_matches_pointer(clone, "c")
    assert version.fingerprint == fingerprint(origin / "data" / "concepts" / "c")
    assert (version.md5, version.pointer) == (versions.verify_matches_pointer(origin, "a").md5, "data.dvc")
    assert capfd.readouterr().out == ""  # stdout belongs to the command line


def test_a_shallow_clone_pulls_and_knows_no_older_revision(origin: Path, tmp_path: Path) -> None:
    root = tmp_path / "shallow"
    _git(origin, "clone", "-q", "--depth", "1", f"file://{origin}", str(root))
    assert versions.pull(root) == ["a", "c"]
    with pytest.raises(InvalidInput) as caught:
        versions.changes(root, "HEAD~1")
    assert caught.value.field == "revision"
    assert "git fetch --unshallow" in (caught.value.mend or "")


def test_what_changed_between_revisions_is_known_in_a_clone_without_data(clone: Path) -> None:
    assert versions.changes(clone, "HEAD~1") == {"a": "modified", "b": "removed", "c": "added"}
    assert versions.changes(clone, "HEAD") == {}
    assert versions.changes(clone, "HEAD", "HEAD~1") == {"a": "modified", "b": "added", "c": "removed"}
    before, after = versions.per_concept_digests(clone, "HEAD~1"), versions.per_concept_digests(clone)
    assert (set(before), set(after)) == ({"a", "b"}, {"a", "c"})
    assert not (clone / "data").exists()


def test_a_tampered_an_added_and_a_missing_file_are_named(clone: Path) -> None:
    versions.pull(clone)
    folder = clone / "data" / "concepts" / "a"
    image = folder / "02.png"
    content = bytearray(image.read_bytes())
    content[40] ^= 1
    image.write_bytes(bytes(content))
    error = _refused(clone, "a")
    assert (error.file, error.field) == (image, "md5")
    assert "is changed" in error.problem
    assert "dvc add data" in (error.mend or "")
    assert "dvc checkout data/concepts/a" in (error.mend or "")
    versions.verify_matches_pointer(clone, "c")
    with pytest.raises(InvalidInput, match="would be lost"):
        versions.pull(clone, "a")
    assert image.read_bytes() == bytes(content)
    image.unlink()
    assert (_refused(clone, "a").file, _refused(clone, "a").problem) == (image, "is missing (against data.dvc)")
    versions.pull(clone, "a")
    (folder / "03.png").write_bytes(b"x")
    assert _refused(clone, "a").file == folder / "03.png"
    (folder / "03.png").unlink()
    (folder / ".DS_Store").write_bytes(b"x")
    versions.verify_matches_pointer(clone, "a")
    (folder / "01.png").unlink()
    (folder / "01.png").symlink_to("/etc/hostname")
    assert "symbolic link" in _refused(clone, "a").problem


def test_a_concept_that_is_not_recorded_or_no_concept_at_all_is_named(clone: Path) -> None:
    versions.pull(clone)
    _add_concept(clone, "d", 4)
    error = _refused(clone, "d")
    assert (error.file, error.field) == (clone / "data.dvc", "d")
    assert "dvc add data" in (error.mend or "")
    with pytest.raises(InvalidInput, match="known concepts: a, c"):
        versions.pull(clone, "d")
    assert "is no name" in _refused(clone, "../../etc").problem


@pytest.mark.parametrize(
    ("content", "field"),
    [("outs: 3\n", "outs"), ("outs:\n- md5: ../../etc/passwd\n", "md5"), ("a: [", "outs")],
)
def test_a_broken_pointer_is_named(clone: Path, content: str, field: str) -> None:
    (clone / "data.dvc").write_text(content)
    error = _refused(clone, "a")
    assert (error.file, error.field) == (str(clone / "data.dvc"), field)


def test_a_damaged_cache_is_not_believed(clone: Path) -> None:
    versions.pull(clone)
    for path in (clone / ".dvc" / "cache" / "files" / "md5").glob("*/*"):
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    shutil.rmtree(clone / "data")
    assert versions.pull(clone) == ["a", "c"]


def test_a_damaged_remote_is_named_and_costs_no_data(clone: Path) -> None:
    _add_concept(clone, "mine", 5)
    for path in (clone / "infra" / "dvc-remote" / "files" / "md5").glob("*/*"):
        if not path.name.endswith(".dir"):
            path.chmod(0o644)
            path.write_bytes(b"damaged")
    with pytest.raises(InvalidInput) as caught:
        versions.pull(clone, "a")
    assert "no sound copy" in caught.value.problem
    assert "push it again" in (caught.value.mend or "")
    assert {path.name for path in (clone / "data" / "concepts").iterdir()} == {"mine"}


def test_data_that_was_never_pushed_is_named(clone: Path) -> None:
    shutil.rmtree(clone / "infra")
    with pytest.raises(InvalidInput) as caught:
        versions.pull(clone)
    assert caught.value.mend


def test_adding_to_a_clone_before_its_first_pull_keeps_the_other_concepts(clone: Path) -> None:
    _add_concept(clone, "mine", 5)
    versions.add(clone)
    assert versions.changes(clone, "HEAD") == {"mine": "added"}
    versions.verify_matches_pointer(clone, "mine")


def test_without_git_data_can_be_pulled_and_verified(clone: Path) -> None:
    shutil.rmtree(clone / ".git")
    assert versions.pull(clone) == ["a", "c"]
    versions.verify_matches_pointer(clone, "a")


def test_a_new_concept_that_cannot_be_recorded_disappears(clone: Path) -> None:
    versions.require_project(clone)
    pointer = (clone / "data.dvc").read_bytes()
    folder = _add_concept(clone, "mine", 5)
    objects = clone / "infra" / "dvc-remote" / "files" / "md5"
    objects.rename(objects.with_name("gone"))  # the other concepts would be lost from the record
    with pytest.raises(InvalidInput):
        versions.record_new(clone, folder)
    assert not (clone / "data").exists()
    assert (clone / "data.dvc").read_bytes() == pointer
    objects.with_name("gone").rename(objects)
    folder = _add_concept(clone, "mine", 5)
    versions.record_new(clone, folder)
    assert versions.changes(clone, "HEAD") == {"mine": "added"}


def test_recording_without_data_or_without_dvc_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no data to record"):
        versions.add(tmp_path)
    _add_concept(tmp_path, "a", 1)
    with pytest.raises(InvalidInput) as caught:
        versions.add(tmp_path)
    assert caught.value.field == "DVC"
    with pytest.raises(InvalidInput, match="no DVC project.*dvc init"):
        versions.require_project(tmp_path)
    assert "no pointer" in _refused(tmp_path, "a").problem

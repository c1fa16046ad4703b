"""The shipped concepts: everything that `data.dvc` names lies in the embedded remote, and is what the seed makes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from components.world.concepts import INSTANCES, STYLES, write_concepts

ROOT = Path(__file__).parents[3]


def stored(md5: str) -> Path:
    return ROOT / "infra" / "dvc-remote" / "files" / "md5" / md5[:2] / md5[2:]


@pytest.fixture(scope="module")
def listing() -> dict[str, Path]:
    """Path below `data/` -> the stored file."""
    (out,) = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]
    entries = json.loads(stored(out["md5"]).read_text())
    return {entry["relpath"]: stored(entry["md5"]) for entry in entries}


def test_every_file_is_there_and_whole(listing: dict[str, Path]) -> None:
    assert listing
    for name, file in listing.items():
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        assert file.parent.name + file.name == digest, name


def test_the_concepts_are_those_of_seed_0(listing: dict[str, Path], tmp_path: Path) -> None:
    assert {Path(name).parts[1] for name in listing} == {*INSTANCES, *STYLES}
    assert (len(INSTANCES), len(STYLES)) == (13, 4)
    made = write_concepts(tmp_path / "concepts", seed=0)
    assert sorted(listing) == sorted(str(file.relative_to(tmp_path)) for folder in made for file in folder.iterdir())
    for name, file in listing.items():
        if name.endswith(".png"):  # pixels: the bytes of a PNG are its writer's matter
            np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(tmp_path / name)))
        else:
            assert file.read_bytes() == (tmp_path / name).read_bytes(), name

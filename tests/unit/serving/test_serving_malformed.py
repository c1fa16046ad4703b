"""Generated rubbish against the loader of adapters and the server: refused by name, nothing crashes or is written.

One seeded generator makes a thousand of them; a failure names its number, from which it is made again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import random
import shutil
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from components.backbones.sd3 import SD3Backbone
from components.errors import IntegrityError, InvalidInput
from components.files import atomic_folder, write_manifest
from components.serving.service import ImageService
from components.settings import BaseSettings, LoraSettings, SamplingSettings

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDERS, REQUESTS, NAMES = 400, 700, 100
CONTROL = "\0\x07\x1b\x7f\x85\x9b\ue000\ufdd0"  # control, private, no character: what has no place in a text
HANGS = 120  # seconds after which one of them counts as hanging
KINDS = (
    *("truncate", "garbage", "pickle", "header", "length", "nan", "infinite", "missing", "zero", "shape", "rename"),
    *("extra", "config", "metadata", "dtype", "deep", "flip", "manifest", "pipe", "link", "folder", "differences"),
)
WEIGHTS = ("adapter_model.safetensors", "concept_embeddings.safetensors")


@pytest.fixture(scope="module")
def backbone(micro_family: Path) -> SD3Backbone:
    settings = BaseSettings(
        path=str(micro_family), resolution=64, max_sequence_length=20, device="cpu", placeholder="sks"
    )
    return SD3Backbone.load(settings)


@pytest.fixture(scope="module")
def sound(backbone: SD3Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound adapter folder."""
    values = torch.randn(backbone.adapted.embedding_shape, generator=torch.Generator().manual_seed(0))
    backbone.create_adapter("m", concept="star", lora=LoraSettings(rank=2, alpha=4.0), embeddings_NRD=values)
    for key, value in backbone.parameters("m")["lora"].items():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    with atomic_folder(folder) as partial:
        backbone.save_adapter("m", partial)
    backbone.remove_adapter("m")
    return folder


def spoil(folder: Path, chance: random.Random) -> str:
    """Spoil a copy of a sound adapter in one way; says which. What is spoilt is signed over by a new manifest, mostly:
    the manifest is no defence against whoever wrote the folder."""
    file = folder / chance.choice(WEIGHTS)
    content = file.read_bytes()
    kind = chance.choice(KINDS)
    if kind == "truncate":
        file.write_bytes(content[: chance.randrange(len(content))])
    elif kind == "garbage":
        file.write_bytes(chance.randbytes(chance.randrange(2000)))
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"w": np.zeros(4)}))
    elif kind == "header":
        header = chance.choice([b"[]", b"{", b'{"w":1}', b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1]}}'])
        file.write_bytes(struct.pack("<Q", len(header)) + header)
    elif kind == "length":
        file.write_bytes(struct.pack("<Q", chance.choice([2**63, 2**40, len(content) * 2])) + content[8:])
    elif kind in ("nan", "infinite", "zero", "shape", "rename", "extra", "dtype"):
        _tensors(file, kind, chance)
    elif kind == "missing":
        (folder / chance.choice([*WEIGHTS, "adapter_config.json"])).unlink()
    elif kind in ("config", "deep"):
        _config(folder / "adapter_config.json", kind, chance)
    elif kind == "metadata":
        tensors = load_file(folder / WEIGHTS[1])
        rubbish = {key: chance.choice(["", "x" * 1000, "\ufffd"]) for key in ("purecc_format", "concept", "rows")}
        save_file(tensors, folder / WEIGHTS[1], metadata=rubbish)
    elif kind in ("pipe", "link", "folder"):
        file.unlink()
        write_manifest(folder)  # before: what these lead to cannot be hashed
        if kind == "pipe":  # whoever opens it waits for a writer
            os.mkfifo(file)
        elif kind == "link":
            file.symlink_to(chance.choice(["/dev/zero", "/etc/passwd", "nowhere", file.name, "..", "/proc/kcore"]))
        else:
            file.mkdir()
        return kind
    elif kind == "differences":
        wrong = {"../x": torch.ones(3), "pos_embed.proj.weight": torch.full((2, 2), float("nan"))}
        name = chance.choice(sorted(wrong))
        save_file({name: wrong[name]}, folder / "weight_differences.safetensors")
        if chance.random() < 0.5:
            (folder / "weight_differences.safetensors").write_bytes(chance.randbytes(200))
    elif kind == "flip":
        position = chance.randrange(len(content))
        file.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        return kind  # without a new manifest
    else:
        lines = ["../../outside", "not a line", "0" * 64 + "  ../x", "\x00"]
        (folder / "SHA256SUMS").write_text(chance.choice(lines), encoding="utf-8")
        return kind
    write_manifest(folder)
    return kind


def _tensors(file: Path, kind: str, chance: random.Random) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    if kind in ("nan", "infinite"):
        tensors[name].view(-1)[chance.randrange(tensors[name].numel())] = float("nan" if kind == "nan" else "inf")
    elif kind == "zero":
        if file.name == WEIGHTS[1]:  # embeddings of zero are embeddings; a wrong shape is not
            tensors[name] = tensors[name][:, :1].contiguous()
        else:
            tensors = {key: value[:0] for key, value in tensors.items()}
    elif kind == "shape":
        tensors[name] = tensors[name].flatten()
    elif kind == "rename":
        tensors["../" + name] = tensors.pop(name)
    elif kind == "extra":
        tensors["another"] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][..., :1].to(torch.int8)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=metadata)


def _config(file: Path, kind: str, chance: random.Random) -> None:
    if kind == "deep":
        file.write_text("[" * 50_000)
        return
    content = json.loads(file.read_text())
    key = chance.choice(["r", "lora_alpha", "target_modules", "peft_type", "use_dora"])
    content[key] = chance.choice([None, -1, "x" * 100, [], {"a": 1}, 10**30, [["a"]]])
    file.write_text(chance.choice([json.dumps(content), "null", "[]", "3", "\x00", '"text"']))


@contextlib.contextmanager
def not_hanging(what: object) -> Iterator[None]:
    """Fail where one of them waits for ever; far from what the slowest needs."""

    def hung(*_: Any) -> None:
        pytest.fail(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_spoilt_adapter_folders_are_refused_by_name(
    backbone: SD3Backbone, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, refused = tmp_path / "inside", 0
    monkeypatch.chdir(tmp_path)
    base = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    for number in range(FOLDERS):
        chance = random.Random(number)
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(sound, inside / "adapter")
        kind = spoil(inside / "adapter", chance)
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        with not_hanging((kind, number)), pytest.raises((InvalidInput, IntegrityError)) as error:
            backbone.load_adapter(inside / "adapter", "spoilt")
            pytest.fail(f"{kind}, number {number}, was taken")
        assert str(error.value), (number, kind)
        refused += 1
        assert backbone.adapted.names == (), (number, kind)  # nothing half-loaded stays
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before, (number, kind)
    assert refused == FOLDERS
    after = backbone.transformer.state_dict()
    assert base.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in base.items())


def rubbish(chance: random.Random) -> bytes:
    """The body of a request that is wrong in one way or another."""
    values: list[Any] = [None, True, -1, 1.5, 10**40, "", " ", "x" * 5000, [], {}, ["a"], "\ud800", "\0", float("inf")]
    values += [f"a{character}b" for character in CONTROL]
    sound: dict[str, Any] = {"prompt": "a <star> star", "seed": 1, "steps": 1, "guidance": 1.0}
    way = chance.randrange(6)
    if way == 0:
        return chance.randbytes(chance.randrange(300))
    if way == 1:
        return json.dumps(chance.choice([values, 3, "text", None, [sound]])).encode()
    if way == 2:
        return chance.choice([b"[" * 10_000, b'{"a":' * 3000, b"{" + b" " * 20_000 + b"}", b"", b'{"prompt": NaN}'])
    if way == 3:
        return json.dumps({**sound, chance.choice(["sede", "__class__", "out", "adapter"]): "../../x"}).encode()
    if way == 4:
        concept = chance.choice(["<nobody>", "<../../etc>  [V]", "[V]", "<nobody> and <star>", "[V] <star>"])
        return json.dumps({**sound, "prompt": f"a {concept} star"}).encode()
    wrong = {
        "prompt": [None, True, 3, "", " ", "x" * 5000, [], {}, "\ud800", *(f"a{character}b" for character in CONTROL)],
        "seed": [True, -1, 1.5, 10**40, "1", [], {}],
        "steps": [0, -1, 1.5, 201, 10**40, "2", True],
        "guidance": [-1, 51, "4", [], True, 10**400],
        "negative_prompt": [3, "x" * 5000, [], "\ud800", "<star>", *(f"a{character}b" for character in CONTROL)],
    }
    field = chance.choice(sorted(wrong))
    return json.dumps({**sound, field: chance.choice(wrong[field])}).encode()


def odd_name(chance: random.Random) -> str:
    """What is no concept that the server knows."""
    odd = [
        "nobody",
        "Star",
        "../star",
        "star/..",
        "a b",
        "a:b",
        "",
        ".",
        "..",
        "\0",
        "star\n",
        "\ud7ff",
        "%2e%2e",
        "'--",
    ]
    return chance.choice(
        [*odd, "x" * chance.randrange(64, 2000), "".join(map(chr, chance.choices(range(1, 999), k=9)))]
    )


def test_malformed_requests_are_refused_by_name(
    backbone: SD3Backbone, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("concept_server", REPOSITORY / "examples" / "concept_server.py")
    assert spec is not None
    assert spec.loader is not None
    server = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = server
    spec.loader.exec_module(server)

    def find(concept: str) -> Any:
        if concept != "star":
            raise InvalidInput(f"<{concept}> has no champion", field="prompt")
        return contextlib.nullcontext(sound)

    service = ImageService(backbone, SamplingSettings(steps=1), find)
    client = TestClient(server.create_app(service, find), base_url="http://localhost", raise_server_exceptions=True)
    good = client.post("/images", json={"prompt": "a <star> star", "seed": 3, "steps": 1})
    assert (good.status_code, good.content[:4]) == (200, b"\x89PNG")
    for number in range(REQUESTS):
        body = rubbish(random.Random(number))
        with not_hanging(number):
            answer = client.post("/images", content=body)
        assert answer.status_code == 422, (number, body[:200])
        assert answer.json()["error"]["message"], number
        assert len(answer.content) < 2000, number  # what was sent is not sent back
    again = client.post("/images", json={"prompt": "a <star> star", "seed": 3, "steps": 1})
    assert again.content == good.content  # none of it left a trace
    for number in range(NAMES):
        answer = client.post(f"/concepts/{quote(odd_name(random.Random(number)), safe='')}")
        assert answer.status_code in (404, 422), number  # the first: a path that is none of the server's
        assert answer.json(), number
    assert service.concepts == ("star",)
    asked = {"prompt": "a <star> star", "seed": 3, "steps": 1}
    for headers in ({"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Origin": "https://evil.example"}):
        for path in ("/images", "/concepts/star"):  # somebody else's page, and one whose name now means this machine
            assert client.post(path, json=asked, headers=headers).status_code in (400, 403), headers
    assert list(tmp_path.iterdir()) == []
    for name in list(backbone.adapted.names):
        backbone.remove_adapter(name)

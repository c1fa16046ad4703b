"""The server example: which champions it serves, what it answers where it cannot, and whom it lets in."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException

from components.settings import Gate
from components.tracking import promotion, registry, runs, signing
from components.tracking.gates import judge
from components.tracking.locks import LockNotTaken
from components.tracking.store import Store

FILE = Path(__file__).resolve().parents[3] / "examples" / "concept_server.py"
ASKED = {"prompt": "a <star> star"}


@pytest.fixture(scope="module")
def server() -> ModuleType:
    spec = importlib.util.spec_from_file_location("concept_server_of_test", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def champion(store: Store, make_adapter: Callable[..., Path]) -> int:
    with runs.run(store, "star", "customize") as tracker:
        number = registry.register(store, "star", make_adapter(b"1"), run_id=tracker.run_id, base={}, tags={}).number
    report = judge({"m": 1.0}, {"m": Gate(minimum=0.5)})
    promotion.record_judgement(store, "star", number, report, key="k", against=None)
    promotion.promote(store, "star", number)
    return number


def client(server: ModuleType, store: Store, *, token: str | None = None) -> TestClient:
    """The server on this registry; the service loads what a prompt names and draws nothing."""
    find = server.champions(store)

    class Service:
        concepts = ("star",)

        def draw(self, request: Any) -> Any:
            with find("star") as folder:
                assert (folder / "adapter_model.safetensors").is_file()
            return SimpleNamespace(png=b"picture", facts={})

        def add(self, name: str, folder: Path) -> None:
            assert folder.is_dir()

    return TestClient(server.create_app(Service(), find, token=token), base_url="http://localhost")


def test_a_blessed_champion_is_served(server: ModuleType, store: Store, champion: int) -> None:
    answer = client(server, store).post("/images", json=ASKED)
    assert (answer.status_code, answer.content) == (200, b"picture")


def _altered(store: Store, number: int, patch: pytest.MonkeyPatch, folder: Path) -> None:
    registry.set_tags(store, "star", number, {"gate/table": "[]"})


def _refused(store: Store, number: int, patch: pytest.MonkeyPatch, folder: Path) -> None:
    report = judge({"m": 0.1}, {"m": Gate(minimum=0.5)})
    promotion.record_judgement(store, "star", number, report, key="k", against=None)


def _unsigned(store: Store, number: int, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv(signing.PUBLIC_KEY, str(folder / "key.pub"))


def _without_key(store: Store, number: int, patch: pytest.MonkeyPatch, folder: Path) -> None:
    registry.set_tags(store, "star", number, {signing.TAG: "{}"})
    patch.setenv(signing.PUBLIC_KEY, str(folder / "nowhere.pub"))


def _registry_away(store: Store, number: int, patch: pytest.MonkeyPatch, folder: Path) -> None:
    def away(*arguments: Any) -> Any:
        raise MlflowException("API request to http://user:secret@mlflow failed with exception")

    patch.setattr(registry, "by_alias", away)


def _locked(store: Store, number: int, patch: pytest.MonkeyPatch, folder: Path) -> None:
    def locked(*arguments: Any) -> Any:
        raise LockNotTaken("held")

    patch.setattr(registry, "by_alias", locked)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_altered, "may not be served"),
        (_refused, "may not be served"),
        (_unsigned, "may not be served"),
        (_without_key, "may not be served"),
        (_registry_away, "the registry does not answer"),
        (_locked, "LockNotTaken"),
    ],
)
def test_what_cannot_be_served_is_answered_by_name_and_says_nothing_of_the_inside(
    server: ModuleType,
    store: Store,
    champion: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    harm: Callable[..., None],
    said: str,
) -> None:
    asking = client(server, store)
    harm(store, champion, monkeypatch, tmp_path)
    for answer in (asking.post("/images", json=ASKED), asking.post("/concepts/star")):
        assert answer.status_code == 503
        assert said in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
        assert "secret" not in answer.text


def test_with_a_token_only_who_bears_it_is_let_in(server: ModuleType, store: Store, champion: int) -> None:
    asking = client(server, store, token="s\u00e9same")
    right = "Bearer s\u00e9same".encode()
    for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": "s\u00e9same".encode()}):
        for method, path in (("POST", "/images"), ("POST", "/concepts/star"), ("GET", "/health")):
            answer = asking.request(method, path, json=ASKED, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (path, headers)
    assert asking.post("/images", json=ASKED, headers={"Authorization": right}).content == b"picture"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_it_listens_beyond_this_machine_only_with_a_token(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    started = []
    monkeypatch.setattr(server, "_build", lambda: "app")
    monkeypatch.setattr("uvicorn.run", lambda app, **more: started.append(more["host"]))
    monkeypatch.delenv(server.TOKEN, raising=False)
    assert server.main(["--host", host]) == 1
    assert server.TOKEN in capsys.readouterr().err
    assert server.main([]) == 0
    monkeypatch.setenv(server.TOKEN, "sesame")
    assert server.main(["--host", host]) == 0
    assert started == ["127.0.0.1", host]


def test_it_cannot_be_started_past_that_check(server: ModuleType) -> None:
    assert not hasattr(server, "app")  # `uvicorn concept_server:app --host 0.0.0.0`

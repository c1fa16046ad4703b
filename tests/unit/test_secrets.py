"""Secrets: known by form or by place, refused by settings, gone from messages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import InvalidInput
from components.provenance import CodeVersion, Provenance
from components.secrets import MASK, RedactingFilter, contains_secret, redact, redact_values, split_userinfo
from components.settings import load_profile
from components.tracking.store import open_store

FORMS = [
    "https://ann:pass@host/x",
    "postgresql+psycopg2://ann:p%40ss@db:5432/mlflow",
    "hf_abcdefghijklmnopqrst",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "glpat-abcdefghij0123456789",
    "https://bucket/x?X-Amz-Signature=abcdef0123&y=1",
]
ORDINARY = [
    "infra/models/tiny",
    "stabilityai/stable-diffusion-3.5-medium",
    "a [V] star on the left, brick background",
    "git@github.com:owner/name.git",
    "mail ann@example.org, see https://example.org/a?b=1",
    "s3://bucket/prefix",
    "hf_hub and AKIA are words",
]


@pytest.mark.parametrize("text", FORMS)
def test_a_secret_is_known_by_its_form(text: str) -> None:
    assert contains_secret(f"before {text} after")
    clean = redact(f"before {text} after")
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    assert MASK in clean
    assert not any(part in clean for part in ("pass@", "p%40ss", "abcdef", "IOSFODNN"))
    assert redact(clean) == clean


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_none_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_TOKEN", "some_api_key"])
def test_a_secret_is_known_by_its_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct horse")
    assert redact("it is correct horse!") == f"it is {MASK}!"
    monkeypatch.setenv(name, "a")  # too short to be told from a word
    assert redact("a star") == "a star"
    monkeypatch.delenv(name)
    monkeypatch.setenv(f"{name}_FILE", "/run/secrets/x")
    assert redact("/run/secrets/x") == "/run/secrets/x"


def test_the_password_of_a_pair_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "purecc:correct horse")
    assert redact("purecc says correct horse and purecc:correct horse") == f"purecc says {MASK} and {MASK}"


words = st.text(st.sampled_from("abcXYZ019-_.~"), min_size=1, max_size=20)


@given(words, words, st.sampled_from(["host", "127.0.0.1:5000", "[::1]:80"]), words)
def test_an_address_is_parted_from_its_password(user: str, password: str, host: str, path: str) -> None:
    bare = f"https://{host}/{path}"
    full = f"https://{user}:{password}@{host}/{path}"
    assert split_userinfo(full) == (bare, user, password)
    assert split_userinfo(bare) == (bare, None, None)
    assert redact(full) == f"https://{MASK}@{host}/{path}"


def test_values_and_log_records_lose_them() -> None:
    value = {"a": ["x", "https://u:p@h"], "b": {"c": 1, "d": None}, "e": ("hf_abcdefghijklmnopqrst",)}
    assert redact_values(value) == {"a": ["x", f"https://{MASK}@h"], "b": {"c": 1, "d": None}, "e": [MASK]}
    record = logging.LogRecord("n", logging.INFO, "f", 1, "to %s at %d%%", ("https://u:p@h", 5), None)
    assert RedactingFilter().filter(record)
    assert record.getMessage() == f"to https://{MASK}@h at 5%"


def test_provenance_is_written_without(monkeypatch: pytest.MonkeyPatch) -> None:
    code = CodeVersion(None, False)
    made = Provenance("star", "pure", "k", 0, {}, {"path": "https://u:p@h/base"}, {}, code, None)
    assert made.to_json()["base"] == {"path": f"https://{MASK}@h/base"}


@pytest.mark.parametrize(
    "override", ["base.path=https://ann:pass@host/model", "evaluation.evaluators.clip=hf_abcdefghijklmnopqrst"]
)
def test_a_profile_that_holds_one_is_refused_without_showing_it(override: str, project: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_profile("tiny", [override])
    assert str(caught.value.field) == override.split("=")[0]
    assert override.split("=")[1] not in str(caught.value)


def test_a_profile_below_a_path_that_holds_one_is_refused(project: Path) -> None:
    folder = project / "hf_abcdefghijklmnopqrst"
    folder.mkdir()
    (folder / "tiny.yaml").write_text((project / "profiles" / "tiny.yaml").read_text())
    with pytest.raises(InvalidInput) as caught:
        load_profile(str(folder / "tiny.yaml"))
    assert "hf_abc" not in str(caught.value)


def test_the_password_of_a_tracking_address_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:p%40ss@mlflow.example/x")
    store = open_store(tmp_path)
    assert store.uri == os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "p@ss")
    assert open_store(tmp_path).uri == store.uri

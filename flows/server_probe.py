"""Asking a server that runs elsewhere: does it answer, which version is it, does it take the password that is set?"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass

from components.secrets import redact, split_userinfo

_SECONDS = 30.0  # a busy server takes its time over a password
_LONGEST = 100  # characters of a version


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        problem: what is wrong; None if nothing is.
        found: the server in one line, if nothing is wrong.
        mend: what to do about the problem.
    """

    problem: str | None
    found: str = ""
    mend: str = ""


def mlflow_server(uri: str) -> Finding:
    """The MLflow server at an address, by health, version and a request that needs a user."""
    address, user, password = split_userinfo(uri.rstrip("/"))
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    start = "start that server, or correct or unset MLFLOW_TRACKING_URI"
    return _probe(
        address,
        package="mlflow",
        version="/version",
        private="/api/2.0/mlflow/experiments/get?experiment_id=0",
        headers=_basic(user, password) if user else _bearer(token),
        user=user or ("a token" if token else None),
        start=start,
        password="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        host="add this name to MLFLOW_SERVER_ALLOWED_HOSTS of the server",
    )


def prefect_server(url: str) -> Finding:
    """The Prefect server at an API address, by health and version; the latter needs a password where one is set."""
    address, user, password = split_userinfo(url.rstrip("/"))
    if user is None:
        user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    key = os.environ.get("PREFECT_API_KEY")
    return _probe(
        address,
        package="prefect",
        version="/admin/version",
        private="/version",
        headers=_basic(user, password) if user else _bearer(key),
        user=user or ("a key" if key else None),
        start="start that server (prefect server start), or correct or unset PREFECT_API_URL",
        password="set PREFECT_API_AUTH_STRING to USER:PASSWORD of the server (Prefect Cloud: PREFECT_API_KEY)",
        host="the proxy before the server does not know this name",
    )


def _probe(
    address: str,
    *,
    package: str,
    version: str,
    private: str,
    headers: dict[str, str],
    user: str | None,
    start: str,
    password: str,
    host: str,
) -> Finding:
    shown = redact(address)
    status, text = _get(f"{address}/health", {})
    if status not in (200, 401, 403):
        return Finding(f"{shown}/health: {text}", mend=start)
    status, text = _get(address + private, headers)
    if status == 401:
        who = f"the password of {user!r} is refused" if user else "it asks for a user and a password, none is set"
        return Finding(f"{shown}: {who}", mend=password)
    if status == 403:
        hostname = "host" in text.lower()
        problem = "it does not answer under this name" if hostname else f"{user or 'nobody'} may not read it"
        return Finding(f"{shown}: {problem}", mend=host if hostname else password)
    if status == 0 or status >= 500:  # 404 is an answer: what was asked for may have been deleted
        return Finding(f"{shown}{private}: {text}", mend=start)
    status, text = _get(address + version, headers)
    theirs = _version(text) if status == 200 else None
    ours = importlib.metadata.version(package)
    if theirs and theirs.partition(".")[0] != ours.partition(".")[0]:
        mend = f"install {package} {theirs.partition('.')[0]} here, or {ours.partition('.')[0]} there"
        return Finding(f"{shown} is version {theirs}, here is {ours}", mend=mend)
    as_whom = f", as {user}" if user else ", without a password"
    return Finding(None, f"{shown}, version {theirs or 'not told'} (here {ours}){as_whom}")


def _get(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and the start of the answer; 0 and the reason where nothing answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS) as answer:
            return int(answer.status), answer.read(1000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(1000).decode(errors="replace")
        return error.code, told if error.code in (401, 403) else str(error)
    except (OSError, ValueError) as error:
        return 0, str(getattr(error, "reason", error))


def _version(text: str) -> str | None:
    """A version as MLflow (plain) or Prefect (JSON) tells it."""
    try:
        text = str(json.loads(text))
    except ValueError:
        text = text.strip()
    return text if text[:1].isdigit() and len(text) < _LONGEST else None


def _basic(user: str | None, password: str | None) -> dict[str, str]:
    encoded = base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def _bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}

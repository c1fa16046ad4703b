"""Signatures of adapter folders with a key pair, by the `model-signing` library (the extra `signing`).

`PURECC_SIGNING_KEY` names the private key (PEM, elliptic curve) that every newly registered adapter is signed with;
`PURECC_SIGNING_PASSWORD` decrypts it. With `PURECC_PUBLIC_KEY`, or `promotion.public_key` of a profile, only adapters
signed by its pair are promoted, drawn with and exported; the MLflow model cannot look (docs/security.md). The signature
is a Sigstore bundle over every file of the folder; it is kept as a tag of the version, so that one can be given later,
too.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from components.errors import IntegrityError, InvalidInput

TAG = "signature/bundle"
SIGNING_KEY, PASSWORD, PUBLIC_KEY = "PURECC_SIGNING_KEY", "PURECC_SIGNING_PASSWORD", "PURECC_PUBLIC_KEY"


def sign(folder: Path, key: Path, password: str | None = None) -> str:
    """The signature of an adapter folder.

    Raises:
        InvalidInput: the key cannot be read, or the library is not installed.
    """
    signer = _library("signing")
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        bundle = Path(temporary) / "bundle.json"
        try:
            signer.Config().use_elliptic_key_signer(private_key=key, password=password).sign(folder, bundle)
        except (ValueError, TypeError, OSError) as error:
            raise InvalidInput(
                f"cannot sign with this key: {error}",
                file=key,
                field=SIGNING_KEY,
                mend="openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
            ) from error
        return bundle.read_text(encoding="utf-8")


def configured_signature(folder: Path) -> str | None:
    """The signature with the configured private key; None where none is configured."""
    key = os.environ.get(SIGNING_KEY)
    return sign(folder, Path(key), os.environ.get(PASSWORD)) if key else None


def verify(folder: Path, bundle: str, key: Path) -> None:
    """Check that every file of the folder is what was signed with the pair of the public `key`.

    Raises:
        IntegrityError: it is not.
        InvalidInput: the key cannot be read, or the library is not installed.
    """
    verifier = _library("verifying")
    if not key.is_file():
        raise InvalidInput("no such public key", file=key, field=PUBLIC_KEY)
    with tempfile.TemporaryDirectory(prefix="purecc-") as temporary:
        file = Path(temporary) / "bundle.json"
        file.write_text(bundle, encoding="utf-8")
        try:
            config = verifier.Config().use_elliptic_key_verifier(public_key=key)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"not a public key: {error}", file=key, field=PUBLIC_KEY) from error
        try:
            config.verify(folder, file)
        except Exception as error:  # whatever the library says of a bundle: it does not verify
            raise IntegrityError(f"its signature does not verify with {key.name}: {error}") from error


def policy_key(root: Path, stated: str | None) -> Path | None:
    """The public key that a profile of the project at `root` states; None where PURECC_PUBLIC_KEY goes before it."""
    return root / stated if stated and not os.environ.get(PUBLIC_KEY) else None


def require_signed(folder: Path, bundle: str | None, key: Path | None = None) -> bool:
    """Refuse a folder that is not signed as configured; False where no public key is.

    Args:
        bundle: its signature, if it has one.
        key: the public key; default: the configured one.

    Raises:
        IntegrityError: it has no signature, or not one of that key.
    """
    configured = os.environ.get(PUBLIC_KEY)
    key = key or (Path(configured) if configured else None)
    if key is None:
        return False
    if not bundle:
        asked = f"{PUBLIC_KEY} or promotion.public_key of the profile asks for a signature"
        raise IntegrityError(f"it is not signed, and {asked} (purecc models sign)")
    verify(folder, bundle, key)
    return True


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise InvalidInput(
            f"signatures need the library model-signing: {error}", mend="pip install 'purecc[signing]'"
        ) from error

"""What is missing on this machine, and the mend. Nothing heavy is imported but for what a check is about."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from components.errors import InvalidInput
from components.model_folder import is_weight_file, model_problems, pipeline_problems
from components.secrets import redact
from components.settings import Profile, load_profile, project_root
from flows import server_probe

# (package, its versions, rival, its versions): sets that pip accepts and that fail at run time.
CONFLICTS = [("prefect", "<3.9", "fastapi", ">=0.151"), ("prefect", "<3.9", "sqlalchemy", ">=2.1")]
FREE_SPACE_TINY, FREE_SPACE = 2 * 1024**3, 20 * 1024**3  # bytes


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: is it as it has to be.
        detail: what was found.
        mend: what to do about it; empty if `ok`.
    """

    name: str
    ok: bool
    detail: str
    mend: str = ""


def _result(name: str, problem: str | None, found: str, mend: str) -> Check:
    return Check(name, False, problem, mend) if problem else Check(name, True, found)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """3.11, 3.12 or 3.13."""
    found = ".".join(map(str, version))
    problem = None if (3, 11) <= version < (3, 14) else f"Python {found}"
    mend = "install Python 3.11, 3.12 or 3.13, then: make clean, make install PYTHON=python3.12"
    return _result("python", problem, f"Python {found}", mend)


def check_packages(version_of: Callable[[str], str] = importlib.metadata.version) -> Check:
    """Every requirement is met, and no two packages stand beside each other that are known to clash."""
    mend = "make install, or: pip install -e '.[dev]' -c constraints.txt"
    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires("purecc") or []]
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", False, "purecc itself is not installed", mend)
    problems, count = [], 0
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = version_of(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} does not satisfy {requirement.specifier}")
    for package, versions, rival, rival_versions in CONFLICTS:
        try:
            pair = version_of(package), version_of(rival)
        except importlib.metadata.PackageNotFoundError:
            continue
        if pair[0] in SpecifierSet(versions) and pair[1] in SpecifierSet(rival_versions):
            problems.append(f"{package} {pair[0]} fails beside {rival} {pair[1]}")
    return _result("packages", "; ".join(problems), f"{count} requirements met", mend)


def check_git(root: Path) -> Check:
    """git is there, and the project is a checkout: DVC and the provenance of a run need both."""
    if shutil.which("git") is None:
        return Check("git", False, "no git on PATH", "install git (apt-get install git)")
    inside = (root / ".git").exists()
    return _result("git", None if inside else f"{root} is no git checkout", "a checkout", "clone it, or: git init")


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a hub id in the local cache, if it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _model_check(
    title: str, path: str, root: Path, mend: str, problems: Callable[[Path], list[str]], revision: str | None = None
) -> Check:
    """A model by folder (relative to the project) or by hub id, complete on this machine."""
    local = root / path
    if local.is_dir() or path.count("/") != 1:  # a hub id is OWNER/NAME
        return _result(title, "; ".join(problems(local)), path, mend)
    fetch = f"hf download {path} (accept its licence on the hub first, where it asks for that), or name a folder"
    snapshot = _cached_snapshot(path, revision)
    if snapshot is None:
        return Check(title, False, f"{path}: neither a folder nor in the local cache of the hub", fetch)
    return _result(title, "; ".join(problems(snapshot)), f"{path} ({snapshot})", fetch)


def check_base(profile: Profile, root: Path) -> Check:
    """The base model: every part, every weight file, every shard."""
    mend = "git checkout -- infra/models, or train the family anew with flows/pretrain.py"
    return _model_check("base model", profile.base.path, root, mend, pipeline_problems, profile.base.revision)


def check_evaluators(profile: Profile, root: Path) -> Iterator[Check]:
    """Each evaluator that the profile names."""
    for name, path in profile.evaluation.evaluators.model_dump().items():
        if path is None:
            continue
        if is_weight_file(path):
            yield _file_check(f"evaluator {name}", path, root)
        else:
            mend = "git checkout -- infra/models, or correct evaluation.evaluators in the profile"
            yield _model_check(f"evaluator {name}", path, root, mend, model_problems)


def _file_check(title: str, path: str, root: Path) -> Check:
    """Weights in a single file, by path or as owner/repository/file of the hub."""
    from huggingface_hub import try_to_load_from_cache

    owner, _, rest = path.partition("/")
    repository, _, name = rest.partition("/")
    cached = try_to_load_from_cache(f"{owner}/{repository}", name) if name and owner not in ("", ".", "..") else None
    if (root / path).is_file() or isinstance(cached, str):
        return Check(title, True, path)
    mend = f"hf download {owner}/{repository} {name}, or name a file"
    return Check(title, False, f"{path}: neither a file nor in the local cache of the hub", mend)


def check_data(root: Path) -> Check:
    """What is here of `data/` is unchanged; concepts that were not pulled are named."""
    from components.concepts.remotes import data_state

    state = data_state(root)
    mend = "dvc pull (fetches what data.dvc names); if the change is meant: dvc add data, and commit data.dvc"
    found = "data/ matches data.dvc"
    if state.not_pulled:
        names = ", ".join(state.not_pulled)
        found += f"; not pulled yet: {names} (dvc pull, or for one: dvc pull data/concepts/{state.not_pulled[0]})"
    return _result("data", state.problem, found, mend)


def check_remote(root: Path) -> Check:
    """The default DVC remote answers and holds the data."""
    from components.concepts.remotes import remote_problem

    mend = "dvc push from a checkout that has the data, or correct the remote: dvc remote list, dvc remote modify"
    return _result("data remote", remote_problem(root), "holds the data of data.dvc", mend)


def _writable(folder: Path) -> str | None:
    """Why nothing can be written to a folder (made, if it is not there); None if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder}: {error.strerror or error}"


def check_tracking(root: Path) -> Check:
    """MLflow: the server of MLFLOW_TRACKING_URI, or the embedded store under mlruns/."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")):
        found = server_probe.mlflow_server(uri)
        return _result("tracking", found.problem, found.found, found.mend)
    if uri and not uri.startswith("sqlite:"):
        return Check("tracking", True, f"{uri.split('://')[0]} store named by MLFLOW_TRACKING_URI, not tried")
    folder = root / "mlruns"
    return _result("tracking", _writable(folder), redact(uri) or str(folder), f"make {folder} writable")


def check_prefect(root: Path) -> Check:
    """Prefect: the server of PREFECT_API_URL, or the embedded one's folder."""
    url = os.environ.get("PREFECT_API_URL", "")
    if url.startswith(("http://", "https://")):
        found = server_probe.prefect_server(url)
        return _result("orchestration", found.problem, found.found, found.mend)
    if url:
        return Check(
            "orchestration", False, f"PREFECT_API_URL={redact(url)!r}", "write http://host:4200/api, or unset it"
        )
    folder = root / ".purecc"
    return _result("orchestration", _writable(folder), "embedded", f"make {folder} writable")


def check_space(root: Path, needed: int) -> Check:
    """Room for the artifacts of some runs."""
    free = shutil.disk_usage(root).free
    found = f"{free / 1024**3:.1f} GiB free"
    mend = f"free {needed / 1024**3:.0f} GiB; old stage artifacts under .purecc/ may be removed"
    return _result("disk", None if free >= needed else found, found, mend)


def check_device(profile: Profile) -> Check:
    """A CUDA device, where the profile asks for one."""
    if profile.base.device != "cuda":
        return Check("device", True, f"{profile.base.device}: no GPU needed")
    import torch

    if torch.cuda.is_available():
        return Check("device", True, torch.cuda.get_device_name(0))
    build = "of this build of torch" if torch.version.cuda is None else "(driver or device missing: see nvidia-smi)"
    mend = "use a machine with an NVIDIA GPU and a CUDA build of torch, or --set base.device=cpu (very slow)"
    return Check("device", False, f"no CUDA {build}", mend)


def run_checks(profile: str = "tiny") -> list[Check]:
    """All checks, in the order in which a person mends them.

    Args:
        profile: name of the profile whose models and device are looked at.
    """
    checks = [check_python(), check_packages()]
    try:
        root = project_root()
    except InvalidInput as error:
        return [*checks, Check("project", False, str(error), "run inside a clone or set PURECC_HOME")]
    checks.append(check_git(root))
    try:
        settings = load_profile(profile)
    except InvalidInput as error:
        checks.append(Check("profile", False, str(error), "correct the profile"))
    else:
        checks += [check_base(settings, root), *check_evaluators(settings, root), check_device(settings)]
        local = (root / settings.base.path).is_dir()
        checks.append(check_space(root, FREE_SPACE_TINY if local else FREE_SPACE))
    return [*checks, check_data(root), check_remote(root), check_tracking(root), check_prefect(root)]

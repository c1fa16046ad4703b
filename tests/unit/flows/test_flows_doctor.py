"""`purecc doctor`: every fault that it knows is found and comes with a mend; a sound project has none."""

from __future__ import annotations

import http.server
import importlib.metadata
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from components.settings import Profile, load_profile
from flows import doctor
from flows.doctor import Check

GIT = ["git", "-c", "user.email=test@example.org", "-c", "user.name=test"]


def fails(check: Check, *, detail: str, mend: str) -> None:
    """The check fails, says what it found and what to do."""
    assert not check.ok
    assert detail in check.detail
    assert mend in check.mend


@pytest.fixture
def profile(project: Path, micro_family: Path) -> Profile:
    """The tiny profile on the untrained family, of which two parts stand in for evaluators."""
    shutil.copytree(micro_family, project / "base")
    overrides = ["base.path=base"]
    overrides += [f"evaluation.evaluators.{name}=null" for name in ("oracle", "csd", "hps", "pickscore")]
    overrides += [f"evaluation.evaluators.{name}=base/text_encoder" for name in ("clip", "dino", "segmenter")]
    return load_profile("tiny", overrides)


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout with data under DVC and pushed to a remote inside it. Copied by the tests that change it."""
    root = tmp_path_factory.mktemp("versioned")
    subprocess.run([*GIT, "init", "-q", root], check=True)
    (root / "data" / "concepts" / "one").mkdir(parents=True)
    (root / "data" / "concepts" / "one" / "concept.yaml").write_text("name: one\n")
    with Repo.init(str(root)) as repo:
        (root / ".dvc" / "config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = ../store\n")
        repo.config.load()
    with Repo(str(root)) as repo:
        repo.add(str(root / "data"))
        repo.push()
    subprocess.run([*GIT, "add", "-A"], cwd=root, check=True)
    subprocess.run([*GIT, "commit", "-qm", "data"], cwd=root, check=True)
    return root


@pytest.fixture
def data_project(versioned: Path, tmp_path: Path) -> Path:
    root = tmp_path / "data-project"
    shutil.copytree(versioned, root)
    return root


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a web server that answers every request, but for that of its health, with one status; gives its address."""
    servers: list[http.server.HTTPServer] = []

    def start(status: int, *, health: int | None = None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(health if health is not None and self.path.endswith("/health") else status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7)])
def test_other_python_is_found(version: tuple[int, int]) -> None:
    fails(doctor.check_python(version), detail=f"{version[0]}.{version[1]}", mend="install Python 3.11")


def test_this_environment_is_sound() -> None:
    assert doctor.check_python() == Check("python", True, "Python {}.{}".format(*sys.version_info[:2]))
    check = doctor.check_packages()
    assert check.ok, check.detail


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"diffusers": "0.30.0"}, "diffusers 0.30.0 does not satisfy"),
        ({"fastapi": "0.165.0"}, "prefect 3.8.8 fails beside fastapi 0.165.0"),
        ({"peft": None}, "peft is not installed"),
    ],
)
def test_package_that_is_missing_old_or_clashes_is_found(changed: dict[str, str | None], detail: str) -> None:
    def version_of(name: str) -> str:
        version = changed.get(name, {"prefect": "3.8.8"}.get(name) or importlib.metadata.version(name))
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    fails(doctor.check_packages(version_of), detail=detail, mend="make install")


def test_missing_git_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(doctor.check_git(project), detail="no git checkout", mend="git init")
    monkeypatch.setenv("PATH", str(project))
    fails(doctor.check_git(project), detail="no git on PATH", mend="install git")


def test_complete_models_are_accepted(profile: Profile, project: Path) -> None:
    checks = [doctor.check_base(profile, project), *doctor.check_evaluators(profile, project)]
    assert [check.name for check in checks] == ["base model", "evaluator clip", "evaluator dino", "evaluator segmenter"]
    assert [check.detail for check in checks if not check.ok] == []


def test_missing_weights_of_base_and_evaluator_are_found(profile: Profile, project: Path) -> None:
    (project / "base" / "text_encoder" / "model.safetensors").unlink()
    fails(doctor.check_base(profile, project), detail="base/text_encoder", mend="git checkout")
    for check in doctor.check_evaluators(profile, project):
        fails(check, detail="base/text_encoder", mend="evaluation.evaluators")


def test_missing_base_folder_is_found(profile: Profile, project: Path) -> None:
    shutil.rmtree(project / "base")
    (project / "infra").mkdir()
    tiny = load_profile("tiny")
    fails(doctor.check_base(tiny, project), detail="no such folder", mend="flows/pretrain.py")


def test_hub_model_that_is_not_cached_is_found(
    profile: Profile, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    real = load_profile("sd35-medium")
    fails(doctor.check_base(real, project), detail="nor in the local cache", mend=f"hf download {real.base.path}")
    for check in doctor.check_evaluators(real, project):
        fails(check, detail="nor in the local cache", mend="hf download")


def test_pulled_and_pushed_data_are_accepted(versioned: Path) -> None:
    assert doctor.check_data(versioned).ok
    assert doctor.check_remote(versioned).ok


def test_data_that_differ_are_named(data_project: Path) -> None:
    (data_project / "data" / "concepts" / "one" / "concept.yaml").write_text("name: two\n")
    (data_project / "data" / "concepts" / "one" / "extra.txt").write_text("")
    check = doctor.check_data(data_project)
    fails(check, detail="modified data/concepts/one/concept.yaml", mend="dvc pull")
    assert "added data/concepts/one/extra.txt" in check.detail


def test_concepts_that_were_not_pulled_are_named_and_no_fault(data_project: Path) -> None:
    other = data_project / "data" / "concepts" / "two"
    other.mkdir()
    for name in ("concept.yaml", "01.png"):
        (other / name).write_text("two\n")
    with Repo(str(data_project)) as repo:
        repo.add(str(data_project / "data"))
    shutil.rmtree(data_project / "data" / "concepts" / "one")
    check = doctor.check_data(data_project)
    assert check.ok, check.detail
    assert "not pulled yet: one (dvc pull, or for one: dvc pull data/concepts/one)" in check.detail
    (other / "01.png").unlink()  # of a concept that is here
    check = doctor.check_data(data_project)
    fails(check, detail="deleted data/concepts/two/01.png", mend="dvc pull")
    assert "one" not in check.detail


def test_data_that_were_not_pulled_are_found(data_project: Path) -> None:
    shutil.rmtree(data_project / "data")
    fails(doctor.check_data(data_project), detail="data/ is not there", mend="dvc pull")


@pytest.mark.parametrize("content", [None, "outs: []\n", "outs: [", "just text"])
def test_missing_or_broken_pointer_is_found(data_project: Path, content: str | None) -> None:
    pointer = data_project / "data.dvc"
    pointer.unlink() if content is None else pointer.write_text(content)
    for check in (doctor.check_data(data_project), doctor.check_remote(data_project)):
        fails(check, detail="data.dvc", mend="dvc")


def test_remote_that_is_gone_or_not_set_is_found(data_project: Path) -> None:
    shutil.rmtree(data_project / "store")
    fails(doctor.check_remote(data_project), detail="store", mend="dvc push")
    (data_project / ".dvc" / "config").write_text("")
    fails(doctor.check_remote(data_project), detail="no remote", mend="dvc remote")
    (data_project / ".dvc" / "config").write_text(
        "['remote \"x\"']\n    url = http://127.0.0.1:9/x\n[core]\n    remote = x\n"
    )
    fails(doctor.check_remote(data_project), detail="http://127.0.0.1:9/x", mend="dvc remote modify")


@pytest.mark.parametrize(
    ("check", "variable", "password"),
    [
        (doctor.check_tracking, "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"),
        (doctor.check_prefect, "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"),
    ],
)
def test_server_that_does_not_answer_is_found(
    check: Callable[[Path], Check],
    variable: str,
    password: str,
    project: Path,
    serve: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    fails(check(project), detail="http://127.0.0.1:9/health", mend=f"unset {variable}")
    monkeypatch.setenv(variable, serve(500))
    fails(check(project), detail="500", mend=f"unset {variable}")
    monkeypatch.setenv(variable, serve(503, health=200))
    fails(check(project), detail="503", mend=f"unset {variable}")
    monkeypatch.setenv(variable, serve(200))
    assert check(project).ok
    asks = serve(401)
    monkeypatch.setenv(variable, asks)
    fails(check(project), detail="none is set", mend=password)
    monkeypatch.setenv(variable, asks.replace("//", "//ann:a-long-password@"))
    fails(check(project), detail="the password of 'ann' is refused", mend=password)
    assert "a-long-password" not in check(project).detail


def test_prefect_address_without_scheme_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "localhost:4200")
    fails(doctor.check_prefect(project), detail="localhost:4200", mend="http://")


def test_folder_that_cannot_be_written_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert doctor.check_tracking(project).ok
    shutil.rmtree(project / "mlruns")
    for name in ("mlruns", ".purecc"):
        shutil.rmtree(project / name, ignore_errors=True)
        (project / name).write_text("a file where a folder belongs")
    fails(doctor.check_tracking(project), detail="mlruns", mend="writable")
    fails(doctor.check_prefect(project), detail=".purecc", mend="writable")


def test_full_disk_is_found(project: Path) -> None:
    assert doctor.check_space(project, 0).ok
    fails(doctor.check_space(project, 2**62), detail="GiB free", mend=".purecc/")


def test_missing_gpu_is_found_only_where_one_is_asked_for(
    profile: Profile, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.check_device(profile).ok
    fails(doctor.check_device(load_profile("sd35-medium")), detail="no CUDA", mend="NVIDIA GPU")


def test_broken_profile_does_not_hide_the_other_checks(project: Path) -> None:
    (project / "profiles" / "tiny.yaml").write_text("nmae: tiny\n")
    checks = {check.name: check for check in doctor.run_checks()}
    fails(checks["profile"], detail="tiny.yaml", mend="correct the profile")
    assert {"python", "packages", "git", "data", "data remote", "tracking", "orchestration"} <= checks.keys()


def test_every_failure_of_an_empty_project_has_a_mend(project: Path) -> None:
    checks = doctor.run_checks()
    failed = [check for check in checks if not check.ok]
    assert {"git", "base model", "data"} <= {check.name for check in failed}
    assert all(check.detail and check.mend for check in failed)


def test_no_project_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PURECC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    fails(doctor.run_checks()[-1], detail="no project", mend="PURECC_HOME")

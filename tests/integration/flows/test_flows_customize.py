"""`purecc customize` and what follows it, on untrained micro models: the real components, all of them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.files import verify_manifest
from components.tracking import promotion, registry
from components.tracking.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
NAME = ("customize", "spotted_star", "--profile", "micro")


def adapter(project: Any) -> Path:
    (folder,) = (project.root / ".purecc" / "artifacts" / "pure-learning").iterdir()
    return folder / "adapter"


def test_the_first_run_makes_a_champion_with_all_its_evidence(
    customized_template: tuple[Path, dict[str, Any]], customized: Any
) -> None:
    said = customized_template[1]
    assert (said["status"], said["version"], said["champion"], said["reused"]) == ("promoted", 1, 1, [])
    assert [gate["passed"] for gate in said["gates"]] == [True]

    folder = adapter(customized)
    verify_manifest(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "concept_embeddings.safetensors",
        "concept.yaml",
        "provenance.json",
        "SHA256SUMS",
    }
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["concept"] == "spotted_star"
    assert provenance["data"]["dvc"].endswith(".dir")
    assert len(provenance["code"]["commit"]) == 40
    assert len(provenance["parents"]) == 1

    store = open_store(customized.root)
    (check,) = promotion.verify(store, "spotted_star")
    assert check.ok
    assert set(check.passed) == {"bytes", "gates", "data", "base", "recording"}
    runs = store.client.search_runs([store.experiment("spotted_star")])
    by_name = {run.info.run_name: run for run in runs}
    assert set(by_name) == {"customize spotted_star", "extractor", "pure-learning", "evaluation"}
    parent = by_name["customize spotted_star"]
    assert parent.info.run_id == said["run"]
    for name in ("extractor", "pure-learning", "evaluation"):
        assert by_name[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert by_name[name].info.status == "FINISHED"
    points = store.client.get_metric_history(by_name["pure-learning"].info.run_id, "lambda_star/mean")
    assert sorted(point.step for point in points) == [1, 2, 3, 4, 5, 6]
    assert parent.data.metrics["fidelity/clip_i"] == said["metrics"]["fidelity/clip_i"]
    assert parent.data.params["learning.lora.rank"] == "2"
    (dataset,) = parent.inputs.dataset_inputs
    assert dataset.dataset.digest == provenance["data"]["dvc"]
    assert provenance["run"] == by_name["pure-learning"].info.run_id
    listed = {item.path for item in store.client.list_artifacts(parent.info.run_id)}
    assert {"report", "validation"} <= listed

    with sqlite3.connect(customized.root / ".purecc" / "prefect" / "prefect.db") as database:
        states = dict(database.execute("SELECT name, state_type FROM task_run"))
        keys = {key for (key,) in database.execute("SELECT key FROM artifact")}
    assert {name.rsplit("-", 1)[0]: state for name, state in states.items()} == dict.fromkeys(
        ("validate", "train_extractor", "train_pure", "evaluate", "promote"), "COMPLETED"
    )
    assert keys == {"gates-spotted-star", "report-spotted-star"}


def test_unchanged_work_is_not_done_again_and_the_reason_is_said(customized: Any) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'prefect', 'great_expectations', 'diffusers')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "from flows.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *NAME, "--json"],
        cwd=customized.root,
        env=customized.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["status"], said["version"]) == ("unchanged", 1)
    assert "data, base, profile and method are those of version 1" in said["reason"]
    assert done.stderr.splitlines()[-1] == "[]"  # it was decided without any of them


def test_an_altered_result_is_found_and_only_that_is_done_again(customized: Any) -> None:
    weights = adapter(customized) / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    done = customized.purecc(*NAME, "--json")
    assert done.code == 0, done.stderr
    assert "altered" in done.stderr
    assert weights.read_bytes() == before  # trained again, to the same bits
    # the evaluation is kept by the adapter's content, which is the same again; so is its version
    assert done.json["reused"] == ["extractor", "evaluation"]
    assert done.json["version"] == 1


def test_a_refused_adapter_stays_a_version_and_the_champion_is_untouched(customized: Any) -> None:
    settings = ("--set", "seed=1", "--set", "gates={preservation/seg_cons: {minimum: 101}, none: {}}")
    refused = customized.purecc(*NAME, *settings, "--json")
    assert refused.code == 1, refused.stderr
    assert (refused.json["status"], refused.json["version"], refused.json["champion"]) == ("refused", 2, 1)
    assert "preservation/seg_cons = " in refused.json["reason"]
    assert "needs >= 101" in refused.json["reason"]
    assert "none was not measured" in refused.json["reason"]
    again = customized.purecc(*NAME, *settings)
    assert again.code == 1
    assert "unchanged, and still refused" in again.stdout
    promote = customized.purecc("models", "promote", "spotted_star", "2", "--json")
    assert promote.code == 1
    assert "needs >= 101" in promote.json["error"]["message"]
    store = open_store(customized.root)
    assert registry.aliases(store, "spotted_star") == {"champion": 1, "challenger": 2}
    assert registry.version(store, "spotted_star", 2).tags["gate/refused"] == refused.json["reason"]


def test_a_successor_is_judged_against_the_champion_and_can_be_rolled_back(customized: Any) -> None:
    settings = ("--set", "seed=1", "--set", "gates={fidelity/clip_i: {not_worse_by: 1.0}}")
    promoted = customized.purecc(*NAME, *settings, "--json")
    assert promoted.code == 0, promoted.stderr
    assert (promoted.json["version"], promoted.json["replaced"]) == (2, 1)
    assert promoted.json["gates"][0]["champion"] is not None
    rolled = customized.purecc("models", "rollback", "spotted_star", "--json")
    assert rolled.json == {"name": "spotted_star", "champion": 1, "rolled_back": 2}
    again = customized.purecc(*NAME, *settings, "--json")
    assert (again.json["status"], again.json["champion"]) == ("unchanged", 1)
    assert "models promote spotted_star 2" in again.json["reason"]
    back = customized.purecc("models", "promote", "spotted_star", "2", "--json")
    assert back.json == {"name": "spotted_star", "champion": 2, "replaced": 1}
    # version 1 was judged when there was no champion
    stale = customized.purecc("models", "promote", "spotted_star", "1", "--json")
    assert (stale.code, stale.json["error"]["kind"]) == (1, "StaleJudgement")
    assert "judge it again with purecc customize spotted_star" in stale.json["error"]["message"]
    done = customized.purecc("models", "promote", "spotted_star", "1", "--reason", "2 draws it too large", "--json")
    assert (done.code, done.json["replaced"]) == (0, 2)
    kept = registry.version(open_store(customized.root), "spotted_star", 1).tags["promotion/reason"]
    assert kept == "2 draws it too large"


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a <spotted_star> star", "--profile", "micro"),
        ("export", "spotted_star", "--format", "diffusers", "--profile", "micro"),
        ("export", "spotted_star", "--format", "diffusers", "--profile", "micro", "--version", "1"),
        ("models", "promote", "spotted_star", "1"),
        ("models", "verify", "spotted_star"),
        ("models", "repair", "spotted_star", "--profile", "micro"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_profile_that_asks_for_signatures_is_heeded_wherever_it_is_known(
    customized: Any, command: tuple[str, ...]
) -> None:
    customized.change_profile(lambda content: content["promotion"].update(public_key="key.pub"))
    done = customized.purecc(*command, "--json")
    assert done.code == 1, done.stdout
    assert "not signed" in done.stdout
    assert not (customized.root / "exports").exists()
    assert not (customized.root / "generated.png").exists()


@pytest.mark.parametrize(
    "command", [("generate", "a <spotted_star> star"), ("export", "spotted_star", "--format=diffusers")]
)
def test_a_champion_that_was_set_by_hand_is_neither_drawn_with_nor_exported(
    customized: Any, command: tuple[str, ...]
) -> None:
    registry.set_tags(open_store(customized.root), "spotted_star", 1, {"gate/status": "refused"})
    done = customized.purecc(*command, "--profile", "micro", "--json")
    assert (done.code, done.json["error"]["kind"]) == (1, "PromotionRefused")


def test_the_commands_of_a_consumer(customized: Any, tmp_path: Path) -> None:
    listed = customized.purecc("models", "list", "--json").json
    assert listed == [{"name": "spotted_star", "aliases": {"champion": 1}}]
    shown = customized.purecc("models", "show", "spotted_star", "--json").json
    assert [version["status"] for version in shown["versions"]] == ["passed"]
    assert customized.purecc("models", "verify", "spotted_star", "--json").json["ok"] is True
    report = customized.purecc("report", "--json").json
    assert Path(report["report"]).read_text().lstrip().lower().startswith("<!doctype html>")
    pictures = {}
    for name, more in (("a", ()), ("b", ()), ("original", ("--original",))):
        out = tmp_path / f"{name}.png"
        text = "a <spotted_star> star on the left"
        drawn = customized.purecc(
            "generate", text, "--profile", "micro", "--seed", "1", "--out", str(out), *more, "--json"
        )
        assert drawn.code == 0, drawn.stderr
        pictures[name] = out.read_bytes()
    assert pictures["a"] == pictures["b"] != pictures["original"]


def test_the_champion_answers_as_an_mlflow_model_in_another_folder(customized: Any, tmp_path: Path) -> None:
    code = (
        "import sys, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/purecc-spotted_star@champion')\n"
        "import pandas as pd\n"
        "rows = pd.DataFrame({'prompt': ['a <spotted_star> star on the left', 'a star on the left'], 'seed': [1, 1]})\n"
        "pictures = list(model.predict(rows)['png'])\n"
        "import components\n"
        "print(components.__file__, [picture[:4] for picture in pictures], pictures[0] != pictures[1])"
    )
    environment = {
        name: value for name, value in customized.environment().items() if name[:6] not in ("PURECC", "PYTHON")
    }
    uri = open_store(customized.root).uri
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, rest = done.stdout.strip().split(" ", 1)
    assert rest == "[b'\\x89PNG', b'\\x89PNG'] True"
    assert Path(where).is_relative_to(customized.root / "mlruns")  # the code that travels with the model


def test_tampered_champions_are_reported(customized: Any) -> None:
    (weights,) = (customized.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors")
    weights.write_bytes(b"other")
    verified = customized.purecc("models", "verify", "spotted_star", "--json")
    assert (verified.code, verified.json["ok"]) == (1, False)
    drawn = customized.purecc("generate", "a <spotted_star> star", "--profile", "micro", "--json")
    assert drawn.code == 1
    assert "adapter_model.safetensors" in drawn.json["error"]["message"]


def test_data_that_does_not_match_its_version_is_refused(customized: Any) -> None:
    metadata = customized.root / "data" / "concepts" / "spotted_star" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("brick", "snow"))
    done = customized.purecc(*NAME, "--json")
    assert done.code == 1
    assert "data.dvc" in json.dumps(done.json["error"])


def test_a_refused_concept_leaves_its_data_docs_with_the_run_and_nothing_half_done(several: Any) -> None:
    done = several.purecc("customize", "dwarf", "--profile", "micro", "--json")
    assert done.code == 1
    assert "8" in done.json["error"]["message"]  # pixels
    store = open_store(several.root)
    run = max(
        store.client.search_runs([store.experiment("dwarf")], filter_string="attributes.run_name = 'customize dwarf'"),
        key=lambda run: run.info.start_time,
    )
    assert (run.info.status, run.data.tags["validation/errors"]) == ("FAILED", "3")
    kept = {item.path for item in store.client.list_artifacts(run.info.run_id, "validation")}
    assert {"validation/docs", "validation/report.json"} <= kept
    assert not list((several.root / ".purecc" / "work").glob("validation/*"))


def test_a_base_that_lost_a_file_is_refused_and_leaves_nothing(customized: Any) -> None:
    store = open_store(customized.root)
    before = registry.versions(store, "spotted_star")
    (lost,) = (customized.root / "infra" / "models" / "base" / "transformer").glob("*.safetensors")
    lost.unlink()
    done = customized.purecc(*NAME, "--set", "seed=1", "--json")
    assert done.code == 1
    assert "transformer" in done.json["error"]["message"]
    assert done.json["error"]["mend"]
    assert registry.versions(store, "spotted_star") == before
    assert not list((customized.root / ".purecc" / "work").glob("*/*"))


def test_data_that_is_not_here_yet_is_fetched(customized: Any) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "push", "-q"], cwd=customized.root, check=True)
    shutil.rmtree(customized.root / "data")
    shutil.rmtree(customized.root / ".dvc" / "cache")
    done = customized.purecc(*NAME, "--json")
    assert done.code == 0, done.stderr
    assert (done.json["status"], done.json["version"]) == ("unchanged", 1)
    assert customized.purecc("customize", "nothing", "--profile", "micro").code == 2


def test_a_plain_lora_has_no_extractor(customized: Any) -> None:
    shutil.rmtree(customized.root / ".purecc" / "artifacts" / "extractor")
    done = customized.purecc(*NAME, "--set", "learning.method=lora", "--json")
    assert done.code == 0, done.stderr
    assert (done.json["status"], done.json["version"]) == ("promoted", 2)
    assert not (customized.root / ".purecc" / "artifacts" / "extractor").exists()


def test_full_fine_tuning_goes_the_whole_way_and_is_composed_with_another_concept(
    customized: Any, tmp_path: Path
) -> None:
    """Its artifact is the difference to all weights; in one image with a PureCC adapter both act, in every way."""
    photos = sorted((customized.root / "data" / "concepts" / "spotted_star").glob("*.png"))
    name = ("my_star", *(str(file) for file in reversed(photos)), "--class-word", "star")
    added = customized.purecc("concepts", "add", *name, "--profile", "micro", "--json")
    assert added.code == 0, added.stderr
    settings = ("learning.method=dreambooth", "learning.pure.weight_learning_rate=0.001", "learning.prior.images=2")
    given = [part for setting in (*settings, "learning.prior.sampling.steps=2") for part in ("--set", setting)]
    done = customized.purecc("customize", "my_star", "--profile", "micro", *given, "--json")
    assert done.code == 0, done.stderr
    assert (done.json["status"], done.json["champion"]) == ("promoted", 1)
    (folder,) = (customized.root / ".purecc" / "artifacts").rglob("weight_differences.safetensors")
    assert not (folder.parent / "adapter_model.safetensors").exists()
    assert customized.purecc("models", "verify", "my_star", "--json").json["ok"] is True

    def draw(prompt: str, *more: str) -> tuple[bytes, Any]:
        out = tmp_path / "drawn.png"
        drawn = customized.purecc("generate", prompt, "--profile", "micro", "--out", str(out), *more, "--json")
        assert drawn.code == 0, drawn.stderr
        return out.read_bytes(), drawn.json

    alone = draw("a <my_star> star on the left")[0]
    assert alone != draw("a <my_star> star on the left", "--original")[0]
    both = "a <my_star> star on the left and a <spotted_star> star"
    pictures = {}
    for how in ("merge", "fusion", "switch", "composite"):
        pictures[how], said = draw(both, "--compose", how, "--steps", "6")
        assert (said["compose"], said["versions"]) == (how, {"my_star": 1, "spotted_star": 1})
        assert how in said["note"]
    pictures["original"], said = draw(both, "--original", "--steps", "6")
    assert said["compose"] is None
    assert len(set(pictures.values())) == 5


def test_an_error_in_a_stage_is_the_commands_error_and_changes_nothing(customized: Any) -> None:
    (customized.root / "infra" / "models" / "clip" / "model.safetensors").unlink()
    done = customized.purecc(*NAME, "--json")
    assert done.code == 1
    assert "clip" in json.dumps(done.json["error"])
    assert "Traceback" not in done.stderr
    assert registry.aliases(open_store(customized.root), "spotted_star") == {"champion": 1}


def test_concepts_are_added_imported_shown_and_judged(customized: Any, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(10 + number).integers(0, 256, (70, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    files = [str(file) for file in sorted(photos.iterdir())]
    settings = ("--profile", "micro", "--json")
    added = customized.purecc("concepts", "add", "my_star", *files, "--class-word", "star", *settings)
    assert added.code == 0, added.stderr
    assert (added.json["name"], added.json["references"]) == ("my_star", 3)
    imported = customized.purecc(
        "concepts", "import", str(photos), "--class-word", "circle", "--name", "ball", *settings
    )
    assert imported.code == 0, imported.stderr
    listed = customized.purecc("concepts", "list", "--json").json
    assert [concept["name"] for concept in listed] == ["ball", "my_star", "spotted_star"]
    assert set(listed[0]) == {"name", "kind", "class_word", "references", "fingerprint"}
    assert customized.purecc("concepts", "show", "ball", "--json").json["images"][0]["target"] == "[V] circle"
    assert customized.purecc("concepts", "validate", "ball", *settings).json["success"] is True

    (customized.root / "data" / "concepts" / "ball" / "01.png").write_bytes(b"no image")
    judged = customized.purecc("concepts", "validate", "ball", *settings)
    assert (judged.code, judged.json["success"]) == (1, False)
    assert judged.json["errors"][0]["file"].endswith("01.png")

    unknown = customized.purecc("concepts", "add", "dog", *files, "--class-word", "dog", *settings)
    assert unknown.code == 1
    assert "dog" in unknown.json["error"]["message"]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    refused = customized.purecc("concepts", "add", "dud", files[0], str(broken), "--class-word", "star", *settings)
    assert refused.code == 1
    assert not list((customized.root / "data" / "concepts").glob("*du*"))

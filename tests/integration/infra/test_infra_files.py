"""The files under infra/: valid by their schemas, hardened, pinned, and of one mind.

compose-spec.json is the schema of the compose specification as docker-compose 1.29.2 ships it
(compose/config/compose_spec.json of its wheel on PyPI, Apache-2.0); Kubernetes' schemas come with kubernetes-validate.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from servers.compose import INFRA, REPOSITORY, read

from components.secrets import SECRET_NAME

HOSTS = {"MLFLOW_HOST": "mlflow.example.org", "PREFECT_HOST": "prefect.example.org"}
ONLY_IN_COMPOSE = {"proxy"}  # a cluster has an ingress instead


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(read(HOSTS)["services"])


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    """What kustomize makes of infra/kubernetes."""
    for program in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(program[0]):
            done = subprocess.run([*program, str(INFRA / "kubernetes")], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return list(yaml.safe_load_all(done.stdout))
    # Without kustomize: the files that it puts together, less what it generates.
    found = []
    for file in yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())["resources"]:
        if file.endswith(".yaml"):
            found += list(yaml.safe_load_all((INFRA / "kubernetes" / file).read_text()))
    return found


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    specs = [each.get("spec", {}) for each in objects]
    specs += [spec["jobTemplate"]["spec"] for spec in specs if "jobTemplate" in spec]
    return [spec["template"]["spec"] for spec in specs if "template" in spec]


def containers(objects: list[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> container and its pod."""
    return {
        container["name"]: (container, pod)
        for pod in pods(objects)
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    }


def test_compose_is_valid_by_its_schema() -> None:
    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
    schema["properties"]["name"] = {"type": "string"}  # in the specification since 1.2, after that release
    content = read()
    jsonschema.validate(content, schema)
    broken = {**content, "services": {**content["services"], "redis": {"imagee": "x"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)
    for kind in ("networks", "secrets"):
        named = {name for service in content["services"].values() for name in service.get(kind, ())}
        assert named == set(content[kind])
    volumes = {mount.split(":")[0] for service in content["services"].values() for mount in service.get("volumes", ())}
    assert {volume for volume in volumes if not volume.startswith(".")} == set(content["volumes"])
    for mount in volumes - set(content["volumes"]):
        assert (INFRA / mount).is_file()


def test_every_service_is_hardened_and_pinned(services: dict[str, dict[str, Any]]) -> None:
    ours = "purecc-"
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert 0 < service["pids_limit"] <= 4096, name
        assert re.search(r":\d+\.\d+", service["image"]), name
        if not service["image"].startswith(ours):
            assert int(service["user"].split(":")[0]) > 0, name
    published = [name for name, service in services.items() if "ports" in service]
    assert published == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in services["proxy"]["ports"])


def test_secrets_come_by_file_alone(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    subprocess.run([str(INFRA / "make-secrets.sh"), str(tmp_path / "made")], check=True, capture_output=True)
    made = {file.name: file.read_text() for file in (tmp_path / "made").iterdir()}
    assert set(read()["secrets"]) == set(made)
    assert len(set(made.values())) == len(made)
    assert min(map(len, made.values())) >= 20
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    subprocess.run([str(INFRA / "make-secrets.sh"), str(tmp_path / "made")], check=True, capture_output=True)
    assert made == {file.name: file.read_text() for file in (tmp_path / "made").iterdir()}
    for name, service in services.items():
        needed = set()
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAME.search(variable) or str(value).startswith("/run/secrets/"):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                needed.add(Path(value).name)
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), f"{name}: {variable}"
        if name != "postgres":  # its script reads two more
            assert needed == set(service.get("secrets", ())), name


def test_a_secret_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", str(INFRA / "servers" / "with-secrets.sh"), "env"]
        path = {"PATH": "/usr/bin:/bin", "SECRETS": str(tmp_path)}
        return subprocess.run(command, env={**path, **environment}, capture_output=True, text=True, check=False)

    (tmp_path / "word").write_text('it\'s $HOME "quoted" `x` \\n\n')
    (tmp_path / "empty").write_text("")
    done = run(MY_WORD_FILE=f"{tmp_path}/word", SSL_CERT_FILE="/etc/ssl/cert.pem")
    assert 'MY_WORD=it\'s $HOME "quoted" `x` \\n\n' in done.stdout
    assert "MY_WORD_FILE" not in done.stdout
    assert "SSL_CERT_FILE=/etc/ssl/cert.pem" in done.stdout
    for name, message in (("none", "cannot be read"), ("empty", "is empty")):
        refused = run(MY_WORD_FILE=f"{tmp_path}/{name}")
        assert refused.returncode == 1
        assert str(tmp_path / name) in refused.stderr
        assert message in refused.stderr


def test_kubernetes_objects_are_valid(objects: list[dict[str, Any]]) -> None:
    assert len(objects) > 15
    for each in objects:
        kubernetes_validate.validate(each, "1.31", strict=True)
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for policy in (each for each in objects if each["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            for peer in rule["from"]:
                if label := peer.get("podSelector", {}).get("matchLabels", {}).get("app"):
                    assert any(name == label for _, name in names), label


def test_kubernetes_runs_what_compose_runs(services: dict[str, dict[str, Any]], objects: list[dict[str, Any]]) -> None:
    found = containers(objects)
    assert set(found) - {"await-server"} == set(services) - ONLY_IN_COMPOSE
    for name, service in services.items():
        if name in ONLY_IN_COMPOSE:
            continue
        container, pod = found[name]
        assert container["image"] == service["image"]
        stated = [*service.get("entrypoint", ()), *service.get("command", ())]
        assert [*container.get("command", ()), *container.get("args", ())] == stated, name
        environment = {entry["name"]: entry["value"] for entry in container.get("env", ())}
        assert environment == {key: str(value) for key, value in service.get("environment", {}).items()}, name
        mounted = {item["key"] for volume in pod["volumes"] for item in volume.get("secret", {}).get("items", ())}
        assert set(service.get("secrets", ())) <= mounted, name
        if "healthcheck" in service:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["exec"]["command"] == service["healthcheck"]["test"][1:], name
    # who talks to whom, as compose's networks have it
    for policy in (each for each in objects if each["kind"] == "NetworkPolicy" and each["spec"].get("ingress")):
        target = policy["metadata"]["name"]
        for peer in policy["spec"]["ingress"][0]["from"]:
            if "podSelector" in peer:
                source = peer["podSelector"]["matchLabels"]["app"]
                shared = set(services[source]["networks"]) & set(services[target]["networks"])
                assert shared, f"{source} -> {target}"


def test_nothing_leaves_the_cluster_but_questions_to_its_dns(objects: list[dict[str, Any]]) -> None:
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    assert any(
        spec["podSelector"] == {} and "Egress" in spec["policyTypes"] and "egress" not in spec for spec in policies
    )
    for rule in (rule for spec in policies for rule in spec.get("egress", ())):
        for peer in rule["to"]:
            assert peer == {"podSelector": {}} or {port["port"] for port in rule["ports"]} == {53}


def test_a_restore_on_a_cluster_begins_with_what_it_needs_alone(objects: list[dict[str, Any]]) -> None:
    """The commands of docs/servers.md: what they leave out would write before the backup is back."""
    text = (REPOSITORY / "docs" / "servers.md").read_text()
    (left_out,) = re.findall(r"-l 'app notin \(([\w,-]+)\)'", text)
    kept = [each for each in objects if each["metadata"].get("labels", {}).get("app") not in left_out.split(",")]
    assert {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"} <= {each["kind"] for each in kept}
    assert set(containers(kept)) == {"postgres", "redis", "rustfs", "backup"}
    assert set(left_out.split(",")) <= {each["metadata"].get("labels", {}).get("app") for each in objects}
    # what the job's command is replaced in, and whom it has to reach
    (saved,) = (each["spec"]["jobTemplate"]["spec"]["template"] for each in objects if each["kind"] == "CronJob")
    (container,) = saved["spec"]["containers"]
    assert container["args"][:2] == ["python", "/etc/purecc/backup.py"]
    programs = set(re.findall(r"/etc/purecc/(\w+\.py)", text))
    assert programs == {"backup.py", "make_bucket.py"} <= {file.name for file in (INFRA / "servers").iterdir()}
    assert saved["metadata"]["labels"]["app"] == "backup"


def test_both_proxies_have_the_same_names_and_limits(objects: list[dict[str, Any]]) -> None:
    """A cluster's ingress lets through what Caddy lets through."""
    stated = (INFRA / "servers" / "Caddyfile").read_text()
    caddy = dict(re.findall(r"max_size (\S+)\s+\}\s+reverse_proxy \{\$(\w+)_UPSTREAM\}", stated))
    found = {}
    for each in (each for each in objects if each["kind"] == "Ingress"):
        (rule,) = each["spec"]["rules"]
        (path,) = rule["http"]["paths"]
        service = path["backend"]["service"]["name"].partition("-")[0].upper()
        found[each["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"].upper() + "B"] = service
        assert [rule["host"]] == each["spec"]["tls"][0]["hosts"]
    assert found == caddy
    assert len(found) == 2


def test_pods_are_hardened(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def dockerfile() -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """The Dockerfile with its long lines joined, and its stages: name -> instructions and their arguments."""
    text = (INFRA / "Dockerfile").read_text().replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions:
        if name == "FROM":
            stages[arguments.split(" AS ")[1]] = []
        elif stages:
            stages[list(stages)[-1]].append((name, arguments))
    return text, stages


def given_to_the_user(stage: list[tuple[str, str]]) -> set[str]:
    """The folders that belong to the user of the image, by their whole paths."""
    found, folder = set(), "/"
    for name, arguments in stage:
        if name == "WORKDIR":
            folder = arguments
        for given in re.findall(r"\bchown 10001:10001 ([^&]*)", arguments) if name == "RUN" else ():
            found |= {str(Path(folder, path)) for path in given.split()}
    assert "chown" not in str(stage) or found
    return found


def test_what_an_image_gives_to_its_user_is_a_mount_and_the_other_way_round(
    services: dict[str, dict[str, Any]], objects: list[dict[str, Any]]
) -> None:
    """Elsewhere the root file system is read-only; and a new volume belongs to whom the image says."""
    _, stages = dockerfile()
    for target in ("servers", "worker", "proxy"):
        mounts, on_kubernetes = set(), set()
        for service in services.values():
            if service.get("build", {}).get("target") == target:
                for entry in service["tmpfs"]:
                    path, _, options = entry.partition(":")
                    assert options in ("mode=1777", "uid=10001,gid=10001")
                    mounts.add(path)
                mounts |= {entry.split(":")[1] for entry in service.get("volumes", ()) if not entry.endswith(":ro")}
        assert mounts - {"/tmp"} == given_to_the_user(stages[target]) != set()
        for container, _ in containers(objects).values():
            if container["image"].startswith(f"purecc-{target}:"):
                mounted = container.get("volumeMounts", ())
                on_kubernetes |= {mount["mountPath"] for mount in mounted if not mount.get("readOnly")}
        assert on_kubernetes == (mounts if target != "proxy" else set())
    (worker,) = (service for name, service in services.items() if name == "worker")
    assert given_to_the_user(stages["worker"]) <= {
        *(entry.split(":")[0] for entry in worker["tmpfs"]),
        *(entry.split(":")[1] for entry in worker["volumes"]),
    }


def test_what_ends_is_waited_for_and_what_stays_is_asked_for_its_health(services: dict[str, dict[str, Any]]) -> None:
    """`docker compose up --wait` fails for a service that ended, well or not, unless another one waits for its end."""
    awaited = {
        name
        for service in services.values()
        for name, condition in service.get("depends_on", {}).items()
        if condition["condition"] == "service_completed_successfully"
    }
    stay = {name for name, service in services.items() if service["restart"] == "unless-stopped"}
    assert awaited == {name for name, service in services.items() if service["restart"] == "on-failure"}
    assert {name for name, service in services.items() if "healthcheck" in service} == stay
    assert {name for name in services if name not in stay | awaited} == {"backup"}


def test_the_images_carry_everything_and_run_as_nobody_in_particular(services: dict[str, dict[str, Any]]) -> None:
    text, stages = dockerfile()
    built = {service["build"]["target"] for service in services.values() if "build" in service}
    assert built == {"servers", "worker", "proxy"}
    for target in built:
        assert [arguments for name, arguments in stages[target] if name == "USER"][-1] == "10001:10001"
        if target != "proxy":
            assert ("ENTRYPOINT", '["/bin/sh", "/etc/purecc/with-secrets.sh"]') in stages[target]
    assert not re.search(r"\bADD\b|:latest", text)
    allowed = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for stage in stages.values():
        for name, arguments in stage:
            if name == "COPY" and not arguments.startswith("--from"):
                for source in arguments.split()[:-1]:
                    assert (REPOSITORY / source).exists(), source
                    reached = any(source.startswith(name) for name in allowed)
                    assert reached, f"{source} does not reach the build"
    for service in services.values():
        if "build" in service:
            for part in service["command"]:
                if part.startswith("/etc/purecc/"):
                    assert (INFRA / "servers" / Path(part).name).is_file()


def test_every_program_of_the_servers_is_pinned() -> None:
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    text = (INFRA / "Dockerfile").read_text().replace("\\\n", " ")
    (packages,) = re.findall(r"pip install --constraint /tmp/constraints.txt\s+(.*)", text)
    assert {name.lower() for name in packages.split()} <= pinned

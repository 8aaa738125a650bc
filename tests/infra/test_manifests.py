"""What the manifests in infra/ name exists: commands, options, recipes, metrics, images, ConfigMaps, versions."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.runtime.recipes import load_recipe
from serving.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DASHBOARD = ROOT / "monitoring" / "dashboards" / "atelier.json"
KUSTOMIZATIONS = sorted([*INFRA.rglob("kustomization.yaml"), *DASHBOARD.parent.glob("kustomization.yaml")])
IN_IMAGE = "/opt/atelier/"
API_VERSIONS = {
    "CronJob": "batch/v1", "Deployment": "apps/v1", "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "Namespace": "v1", "NetworkPolicy": "networking.k8s.io/v1", "PersistentVolumeClaim": "v1",
    "RayCluster": "ray.io/v1", "RayJob": "ray.io/v1", "RayService": "ray.io/v1",
    "Role": "rbac.authorization.k8s.io/v1", "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Service": "v1", "ServiceAccount": "v1",
}  # fmt: skip


def config_files() -> set[Path]:
    """Files that become ConfigMaps: not manifests themselves."""
    found = set()
    for path in KUSTOMIZATIONS:
        for generator in yaml.safe_load(path.read_text()).get("configMapGenerator", []):
            found |= {path.parent / name for name in generator["files"]}
    return found


def manifests() -> list[dict[str, Any]]:
    paths = set(INFRA.rglob("*.yaml")) - config_files()
    return [found for path in sorted(paths) for found in yaml.safe_load_all(path.read_text()) if found]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def containers() -> list[dict[str, Any]]:
    return [c for m in manifests() for node in walk(m) for c in node.get("containers", [])]


def commands() -> list[list[str]]:
    """Every command line of this project: of jobs, and after ``--`` of submissions."""
    found = [shlex.split(m["spec"]["entrypoint"]) for m in manifests() if m["kind"] == "RayJob"]
    for container in containers():
        words = [str(word) for word in [*container.get("command", []), *container.get("args", [])]]
        if words[:3] == ["ray", "job", "submit"]:
            words = words[words.index("--") + 1 :]
        if words and words[0] in ("python", "atelier"):
            found.append(words)
    return found


def test_every_manifest_is_of_a_known_kind_and_names_it() -> None:
    found = manifests()
    assert {m["kind"] for m in found} == set(API_VERSIONS)
    for manifest in found:
        assert manifest["apiVersion"] == API_VERSIONS[manifest["kind"]]
        assert manifest["kind"] == "Kustomization" or manifest["metadata"]["name"]


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_what_a_kustomization_lists_exists(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    for resource in tree.get("resources", []):
        target = path.parent / resource
        assert target.is_file() or (target / "kustomization.yaml").is_file(), resource
    for generator in tree.get("configMapGenerator", []):
        assert all((path.parent / name).is_file() for name in generator["files"])


def test_no_manifest_is_forgotten() -> None:
    listed = set(config_files())
    for path in KUSTOMIZATIONS:
        listed |= {(path.parent / name).resolve() for name in yaml.safe_load(path.read_text()).get("resources", [])}
    forgotten = [p for p in INFRA.rglob("*.yaml") if p.name != "kustomization.yaml" and p.resolve() not in listed]
    assert not forgotten


def test_commands_and_their_options_exist() -> None:
    from typer.main import get_command

    from pipelines.cli import app

    subcommands = get_command(app).commands  # type: ignore[attr-defined]
    found = commands()
    assert len(found) >= 3
    for words in found:
        if words[0] == "python":
            script = ROOT / words[1].removeprefix(IN_IMAGE)
            assert words[1].startswith(IN_IMAGE) and script.is_file(), words
            name, rest = script.stem, words[2:]
        else:
            name, rest = words[1], words[2:]
        options = {option for parameter in subcommands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words


def test_the_recipe_is_valid_and_every_command_reads_it() -> None:
    recipe = load_recipe(str(INFRA / "kuberay" / "recipe.yaml"))
    assert recipe.run.root.startswith("/mnt/atelier/")
    for words in commands():
        assert words[words.index("--recipe") + 1] == "/etc/atelier/recipe.yaml"
    for container in containers():
        if container["name"].startswith("ray-"):
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/mnt/atelier", "/etc/atelier", "/dev/shm"} <= mounts


def test_the_service_deploys_what_serving_offers() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = next(m for m in manifests() if m["kind"] == "RayService")
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = deploy.applications
    module, _, function = str(application.import_path).partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert re.search(rf"^def {function}\(args: dict", source, re.MULTILINE)
    assert set(application.args) <= {"recipe", "set", "require_key"}
    assert application.args.get("require_key", True) is True
    targets = yaml.safe_load((INFRA / "monitoring" / "scrape.yaml").read_text())["scrape_configs"][0]["static_configs"]
    assert targets == [{"targets": [f"{service['metadata']['name']}-serve-svc:8000"]}]


def test_jobs_submit_to_the_cluster_that_is_there() -> None:
    cluster = next(m for m in manifests() if m["kind"] == "RayCluster")["metadata"]["name"]
    job = next(m for m in manifests() if m["kind"] == "RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster}
    for container in containers():
        if "submit" in container.get("command", []):
            assert f"http://{cluster}-head-svc:8265" in container["command"]


def test_images_and_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for container in containers()}
    assert {image for image in images if image.startswith("atelier")} == {f"atelier:{version}"}
    assert all(re.search(r":v?\d+\.\d+", image) for image in images), "an image without a version"
    top = yaml.safe_load((INFRA / "kustomization.yaml").read_text())["images"]
    assert top == [{"name": "atelier", "newName": "atelier", "newTag": version}]
    pinned = dict(re.findall(r"^(ray|mlflow)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    ray_versions = {node["rayVersion"] for m in manifests() for node in walk(m) if "rayVersion" in node}
    assert ray_versions == {pinned["ray"]}


def test_pods_run_without_privileges() -> None:
    specs = [node for m in manifests() for node in walk(m) if "containers" in node]
    assert specs
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_volumes_claims_and_config_maps_exist() -> None:
    found = manifests()
    claims = {m["metadata"]["name"] for m in found if m["kind"] == "PersistentVolumeClaim"}
    maps = {g["name"] for p in KUSTOMIZATIONS for g in yaml.safe_load(p.read_text()).get("configMapGenerator", [])}
    for node in (node for m in found for node in walk(m)):
        if "persistentVolumeClaim" in node:
            assert node["persistentVolumeClaim"]["claimName"] in claims
        if "configMap" in node:
            assert node["configMap"]["name"] in maps


def test_dashboard_and_alerts_use_metrics_that_serving_exports() -> None:
    exported = set()
    for family in Metrics().registry.collect():
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[family.type]
        exported |= {family.name + ending for ending in kinds}
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    rules = yaml.safe_load((INFRA / "monitoring" / "rules.yaml").read_text())["groups"][0]["rules"]
    assert all(rule["annotations"]["summary"] and rule["annotations"]["remedy"] for rule in rules)
    for expression in [*expressions, *(rule["expr"] for rule in rules)]:
        used = set(re.findall(r"atelier_\w+", expression))
        assert used <= exported, expression
        assert used or "up{" in expression


def test_image_is_built_from_what_is_here() -> None:
    text = (INFRA / "image" / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()]
    packages = {
        p.split(".")[0] for p in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    }
    assert packages <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    allowed = {line[1:] for line in (INFRA / "image" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    assert allowed == set(sources)
    assert "\nFROM python:3.11-slim" in text and "\nUSER 1000" in text and "constraints.txt" in text


def test_infra_holds_no_python() -> None:
    assert not list(INFRA.rglob("*.py"))


@pytest.mark.parametrize("folder", ["infra", "infra/kuberay/rayjob", "infra/storage"])
def test_kustomize_builds_it(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed here, so kustomize cannot build the manifests")
    done = subprocess.run([kubectl, "kustomize", folder], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    built = [found for found in yaml.safe_load_all(done.stdout) if found]
    assert built
    if folder == "infra":
        assert {"RayCluster", "RayService", "CronJob", "Deployment", "ConfigMap"} <= {m["kind"] for m in built}
        for manifest in built:
            assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "atelier"
        maps = {m["metadata"]["name"] for m in built if m["kind"] == "ConfigMap"}
        used = {node["configMap"]["name"] for m in built for node in walk(m) if "configMap" in node}
        assert used == maps  # names as kustomize has changed them

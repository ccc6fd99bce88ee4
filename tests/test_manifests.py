"""The manifests grant what is needed and nothing more, and set only what exists."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.generated import COMMAND, INSTALL, ROOT, install, render
from tracker import __version__
from tracker.catalog import KINDS
from tracker.cli import once
from tracker.settings import FLAG_ONLY, Settings, load, read_duration

MANIFESTS = ROOT / "manifests"
KUSTOMIZATIONS = ("base", "overlays/development", "overlays/namespaced")

READ_PODS = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]

STOP_SECONDS = 10
"""What an orderly end may take after the drain: requests in flight, the last write, the exit."""

Manifest = dict[str, Any]  # raw YAML


@pytest.fixture(params=KUSTOMIZATIONS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """One kustomization after the other, rendered."""
    text = render(MANIFESTS / request.param)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    return list(yaml.safe_load_all(text))


def one(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the only manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def committed() -> list[Manifest]:
    """Return what is in install.yaml."""
    return list(yaml.safe_load_all(INSTALL.read_text(encoding="utf-8")))


def pod_of(manifests: list[Manifest]) -> Manifest:
    """Return the pod spec."""
    spec: Manifest = one(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container_of(manifests: list[Manifest]) -> Manifest:
    """Return the only container."""
    (container,) = pod_of(manifests)["containers"]
    assert isinstance(container, dict)
    return container


def environment_of(manifests: list[Manifest]) -> dict[str, str]:
    """Return the variables with a fixed value: the ConfigMap's and the container's own."""
    config: dict[str, str] = dict(one(manifests, "ConfigMap")["data"])
    own = {env["name"]: env["value"] for env in container_of(manifests)["env"] if "value" in env}
    return config | own


def test_the_rendered_manifest_is_in_step() -> None:
    """It is compared as data: kubectl's version may order keys in its own way."""
    expected = install()
    if expected is None:
        pytest.skip("kubectl is not on PATH")
    assert committed() == list(yaml.safe_load_all(expected)), f"run: {COMMAND}"
    head = INSTALL.read_text(encoding="utf-8").partition("\napiVersion")[0]
    assert head == expected.partition("\napiVersion")[0], f"run: {COMMAND}"


def test_the_rendered_manifest_installs_what_the_project_promises() -> None:
    kinds = [manifest["kind"] for manifest in committed()]
    assert sorted(kinds) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "Deployment",
        "Namespace",
        "ServiceAccount",
    ]
    assert one(committed(), "Namespace")["metadata"]["name"] == "deployment-tracker"


def test_every_variable_that_is_set_exists(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    names = {env["name"] for env in container["env"]} | set(environment_of(manifests))
    assert names <= {name.upper() for name in Settings.model_fields if name not in FLAG_ONLY}
    assert "ORG" in names
    assert "API_TOKEN" in names
    (source,) = container["envFrom"]
    assert source == {"configMapRef": {"name": one(manifests, "ConfigMap")["metadata"]["name"]}}


def test_the_values_are_good_once_the_organisation_is_filled_in(
    manifests: list[Manifest],
) -> None:
    environ = environment_of(manifests)
    assert environ["ORG"] == ""
    load({}, environ | {"ORG": "acme"})


def test_it_may_read_pods_and_nothing_else(manifests: list[Manifest]) -> None:
    account = one(manifests, "ServiceAccount")["metadata"]
    roles = [manifest for manifest in manifests if manifest["kind"] in {"Role", "ClusterRole"}]
    bindings = [manifest for manifest in manifests if manifest["kind"].endswith("RoleBinding")]
    (role,), (binding,) = roles, bindings
    assert role["rules"] == READ_PODS
    assert "aggregationRule" not in role
    assert binding["kind"] == f"{role['kind']}Binding"
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": role["kind"],
        "name": role["metadata"]["name"],
    }
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert pod_of(manifests)["serviceAccountName"] == account["name"]


def test_the_namespaced_overlay_asks_for_nothing_outside_its_namespace() -> None:
    text = render(MANIFESTS / "overlays" / "namespaced")
    if text is None:
        pytest.skip("kubectl is not on PATH")
    manifests = list(yaml.safe_load_all(text))
    assert len({manifest["metadata"].get("namespace") for manifest in manifests}) == 1
    assert not {"Namespace", "ClusterRole", "ClusterRoleBinding"}.intersection(
        manifest["kind"] for manifest in manifests
    )
    assert {
        "name": "NAMESPACE",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
    } in container_of(manifests)["env"]


def test_there_are_never_two_at_once(manifests: list[Manifest]) -> None:
    spec = one(manifests, "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_the_pod_is_hardened(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests), container_of(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["runAsGroup"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"}.intersection(pod)
    assert all("emptyDir" in volume for volume in pod["volumes"])


def test_the_account_s_token_is_mounted_into_the_one_pod_only(manifests: list[Manifest]) -> None:
    assert one(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod_of(manifests)["automountServiceAccountToken"] is True


def test_memory_is_bounded_and_requested(manifests: list[Manifest]) -> None:
    resources = container_of(manifests)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}  # a throttled tracker would record late


def test_the_grace_period_outlasts_the_drain(manifests: list[Manifest]) -> None:
    drain = load({}, environment_of(manifests) | {"ORG": "acme"}).drain_timeout
    grace = pod_of(manifests)["terminationGracePeriodSeconds"]
    assert grace >= drain.total_seconds() + STOP_SECONDS


def test_the_recommended_labels_are_set(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "deployment-tracker", manifest["kind"]
        assert "app.kubernetes.io/version" in labels, manifest["kind"]
    spec = one(manifests, "Deployment")["spec"]
    # A selector can't be changed later, so no version may stand in it.
    assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": "deployment-tracker"}
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_token_comes_from_a_secret_that_must_exist(manifests: list[Manifest]) -> None:
    (token,) = (env for env in container_of(manifests)["env"] if env["name"] == "API_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "deployment-tracker", "key": "token"}}
    assert "API_TOKEN" not in environment_of(manifests)


@pytest.mark.parametrize(
    "path", sorted(MANIFESTS.rglob("*.*")), ids=lambda path: str(path.relative_to(MANIFESTS))
)
def test_no_manifest_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^kind: Secret\b|^secretGenerator:", text, flags=re.MULTILINE)
    assert not re.search(r"gh[a-z]_[A-Za-z0-9]{20}|github_pat_|-----BEGIN|eyJ[A-Za-z0-9]", text)


def test_the_image_is_pinned() -> None:
    image = container_of(committed())["image"]
    assert re.fullmatch(r"[a-z0-9.-]+/[a-z0-9/-]+:[0-9]+\.[0-9]+\.[0-9]+", image)


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def arguments(instruction: str) -> list[str]:
    """Return the arguments of every instruction of a kind, in order."""
    return [argument for name, argument in instructions() if name == instruction]


def test_the_container_runs_as_the_user_that_the_pod_names() -> None:
    context = pod_of(committed())["securityContext"]
    assert arguments("USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]


def test_the_base_image_is_pinned_to_a_patch_version_in_every_stage() -> None:
    bases = {base.partition(" ")[0] for base in arguments("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.[0-9]+\.[0-9]+-slim-[a-z]+", bases.pop())


def test_the_image_is_built_without_a_shell_and_from_known_files_only() -> None:
    for command in [*arguments("RUN"), *arguments("ENTRYPOINT")]:
        assert all(isinstance(word, str) for word in json.loads(command)), command
    installs = [command for command in arguments("RUN") if '"install"' in command]
    (install_command,) = map(json.loads, installs)
    assert "--require-hashes" in install_command
    assert install_command[install_command.index("--only-binary") + 1] == ":all:"
    assert not arguments("ADD")


def test_the_builder_is_sent_only_what_the_image_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    copied = {
        word.rstrip("/")
        for copy in arguments("COPY")
        if not copy.startswith("--from=")
        for word in copy.split()[:-1]
    }
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_the_image_tells_its_version() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in " ".join(arguments("LABEL"))


def test_the_ledger_outlives_the_container() -> None:
    """Its folder is a volume, and nothing else on the root can be written."""
    container = container_of(committed())
    path = environment_of(committed())["LEDGER_PATH"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (volume,) = (name for place, name in mounts.items() if path.startswith(f"{place}/"))
    assert volume in {each["name"] for each in pod_of(committed())["volumes"]}


def rendered_with(*components: str, folder: Path, over: str = "base") -> list[Manifest]:
    """Render a kustomization elsewhere that names components, as an overlay of a user's does."""
    root = os.path.relpath(MANIFESTS, folder)
    named = ", ".join(f"{root}/components/{component}" for component in components)
    # Over that one its namespace is to be said again, for what a component adds.
    namespace = "namespace: shop\n" if over == "overlays/namespaced" else ""
    (folder / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"{namespace}resources: [{root}/{over}]\ncomponents: [{named}]\n"
    )
    text = render(folder)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    return list(yaml.safe_load_all(text))


def test_with_the_persistence_component_the_ledger_outlives_the_pod(tmp_path: Path) -> None:
    manifests = rendered_with("persistence", folder=tmp_path)
    claim = one(manifests, "PersistentVolumeClaim")["metadata"]
    (data,) = (volume for volume in pod_of(manifests)["volumes"] if volume["name"] == "data")
    assert data == {"name": "data", "persistentVolumeClaim": {"claimName": claim["name"]}}
    assert claim["namespace"] == one(manifests, "Deployment")["metadata"]["namespace"]
    # A claimed volume is root's, unless the pod's group is given it.
    assert pod_of(manifests)["securityContext"]["fsGroup"]


@pytest.mark.parametrize(
    ("over", "role"), [("base", "ClusterRole"), ("overlays/namespaced", "Role")]
)
def test_the_workloads_component_grants_what_is_read_and_says_so(
    tmp_path: Path, over: str, role: str
) -> None:
    manifests = rendered_with("workloads", folder=tmp_path, over=over)
    pods, *others = one(manifests, role)["rules"]
    assert [pods] == READ_PODS
    granted = {
        (group, resource)
        for rule in others
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {(kind.group, kind.plural) for kind in KINDS.values()}
    assert {tuple(rule["verbs"]) for rule in others} == {("get", "list")}
    environ = environment_of(manifests)
    assert environ["WORKLOADS"] == "true"
    assert load({}, environ | {"ORG": "acme"}).workloads
    assert not load({}, environment_of(committed()) | {"ORG": "acme"}).workloads


def seconds_of_once() -> float:
    """Return the time that `once` gives itself, if it is told nothing else."""
    (timeout,) = (each for each in once.params if each.name == "timeout")
    return read_duration(str(timeout.default)).total_seconds()


@pytest.mark.parametrize("over", ["base", "overlays/namespaced"])
def test_the_cronjob_component_runs_the_same_pod_now_and_then(tmp_path: Path, over: str) -> None:
    (tmp_path / "deployment").mkdir()
    expected = rendered_with("persistence", folder=tmp_path / "deployment", over=over)
    manifests = rendered_with("cronjob", folder=tmp_path, over=over)
    kinds = [manifest["kind"] for manifest in manifests]
    assert "Deployment" not in kinds
    cronjob = one(manifests, "CronJob")
    assert cronjob["metadata"]["labels"] == one(expected, "Deployment")["metadata"]["labels"]
    spec = cronjob["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod.pop("restartPolicy") == "Never"
    assert pod["containers"][0].pop("args") == ["once"]
    assert pod == pod_of(expected)
    # The claim, too: without what was posted before a run finds nothing to take back.
    assert one(manifests, "PersistentVolumeClaim") == one(expected, "PersistentVolumeClaim")
    deadline = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert deadline >= seconds_of_once() + pod["terminationGracePeriodSeconds"]


def test_the_cronjob_has_what_components_before_it_changed_in_the_pod(tmp_path: Path) -> None:
    wanted = container_of(rendered_with("workloads", folder=tmp_path))["env"]
    cronjob = one(rendered_with("workloads", "cronjob", folder=tmp_path), "CronJob")
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["env"] == wanted

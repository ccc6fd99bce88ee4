"""The manifests grant what is needed and nothing more, and set only what exists."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.generated import COMMAND, INSTALL, ROOT, install, render
from tests.support.imagebuild import arguments
from tracker import __version__
from tracker.catalog import KINDS
from tracker.cli import once
from tracker.flags import FLAG_ONLY
from tracker.settings import Settings, load, read_duration

MANIFESTS = ROOT / "manifests"
KUSTOMIZATIONS = (
    "base",
    *sorted(
        f"overlays/{path.parent.name}" for path in MANIFESTS.glob("overlays/*/kustomization.yaml")
    ),
)
COMPONENTS = tuple(
    sorted(path.parent.name for path in MANIFESTS.glob("components/*/kustomization.yaml"))
)

NEEDS_CRDS = "prometheus-operator"
"""The one component whose objects only some clusters know."""

READ_PODS = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]

METRICS_PORT = 9090

TOKEN_FILE = "/var/run/secrets/github/token"  # noqa: S105 - where it is, not what it is

STOP_SECONDS = 10
"""What an orderly end may take after the drain: requests in flight, the last write, the exit."""

Manifest = dict[str, Any]  # raw YAML


@cache
def rendered(kustomization: str) -> str | None:
    """Return one of the project's kustomizations, rendered once: kubectl takes half a second."""
    return render(MANIFESTS / kustomization)


@pytest.fixture(params=KUSTOMIZATIONS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """One kustomization after the other, rendered."""
    text = rendered(request.param)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    return list(yaml.safe_load_all(text))


def one(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the only manifest of a kind; of ConfigMaps, the one with the settings."""
    (found,) = (
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and "-dashboard" not in manifest["metadata"]["name"]
    )
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
    assert "API_TOKEN_FILE" in names
    (source,) = container["envFrom"]
    assert source == {"configMapRef": {"name": one(manifests, "ConfigMap")["metadata"]["name"]}}


def test_the_values_are_good_once_the_organisation_is_filled_in(
    manifests: list[Manifest],
) -> None:
    environ = environment_of(manifests)
    assert environ["ORG"] == ""
    load({}, environ | {"ORG": "acme"})


def test_it_may_read_what_it_is_set_to_read_and_nothing_else(manifests: list[Manifest]) -> None:
    account = one(manifests, "ServiceAccount")["metadata"]
    roles = [manifest for manifest in manifests if manifest["kind"] in {"Role", "ClusterRole"}]
    bindings = [manifest for manifest in manifests if manifest["kind"].endswith("RoleBinding")]
    (role,), (binding,) = roles, bindings
    pods, *others = role["rules"]
    assert [pods] == READ_PODS
    assert {tuple(rule["verbs"]) for rule in others} <= {("get", "list")}
    assert bool(others) is (environment_of(manifests).get("WORKLOADS") == "true")
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
    text = rendered("overlays/namespaced")
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
    kinds = {"emptyDir", "secret", "persistentVolumeClaim"}
    assert all(len(kinds.intersection(volume)) == 1 for volume in pod["volumes"])
    writable = {each["name"] for each in container["volumeMounts"] if not each.get("readOnly")}
    assert writable == {"data", "tmp"}


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
        told = {
            key.removeprefix("app.kubernetes.io/"): value
            for key, value in labels.items()
            if key.startswith("app.kubernetes.io/")
        }
        # What a component adds has no version: it is not the program's.
        told.pop("version", "")
        assert told.pop("component"), manifest["kind"]
        assert told == {
            "name": "deployment-tracker",
            "instance": "deployment-tracker",
            "part-of": "deployment-tracker",
            "managed-by": "kustomize",
        }, manifest["kind"]
    runs = next(each for each in manifests if each["kind"] in {"Deployment", "CronJob"})
    assert runs["metadata"]["labels"]["app.kubernetes.io/version"]
    if runs["kind"] == "CronJob":
        return  # it selects no pods
    spec = runs["spec"]
    # A selector can't be changed later, so no version may stand in it.
    assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": "deployment-tracker"}
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_token_is_a_file_of_a_secret_that_must_exist(manifests: list[Manifest]) -> None:
    """As a file it can be rotated without a restart; a variable is fixed when the pod starts."""
    assert environment_of(manifests)["API_TOKEN_FILE"] == TOKEN_FILE
    assert "API_TOKEN" not in {env["name"] for env in container_of(manifests)["env"]}
    (mount,) = (
        mount
        for mount in container_of(manifests)["volumeMounts"]
        if TOKEN_FILE.startswith(f"{mount['mountPath']}/")
    )
    # A single file of a volume, mounted by subPath, would never change.
    assert set(mount) == {"name", "mountPath", "readOnly"}
    (volume,) = (each for each in pod_of(manifests)["volumes"] if each["name"] == mount["name"])
    assert volume["secret"] == {
        "secretName": "deployment-tracker",
        "defaultMode": 0o440,
        "items": [{"key": "token", "path": "token"}],
    }
    # Its files belong to root; the pod's group may read them.
    assert pod_of(manifests)["securityContext"]["fsGroup"]


def test_the_probes_ask_what_the_outside_world_has_no_say_in(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    assert container["ports"] == [{"name": "metrics", "containerPort": METRICS_PORT}]
    asked = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["httpGet"] for kind, probe in asked.items()} == {
        "startup": {"path": "/healthz", "port": "metrics"},
        "liveness": {"path": "/healthz", "port": "metrics"},
        "readiness": {"path": "/readyz", "port": "metrics"},
    }
    # What only the first post shows is told by a rollout as well.
    spec = one(manifests, "Deployment")["spec"]
    assert spec["minReadySeconds"] > 3 * asked["readiness"]["periodSeconds"]
    # A hiccup of a busy node is no reason to begin anew.
    assert asked["liveness"]["periodSeconds"] * asked["liveness"]["failureThreshold"] >= 60
    assert asked["startup"]["periodSeconds"] * asked["startup"]["failureThreshold"] >= 60


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


def rendered_with(
    *components: str, folder: Path, over: str = "base", more: Manifest | None = None
) -> list[Manifest]:
    """
    Render a kustomization elsewhere that names components, as an overlay of a user's does.

    `more` is what else stands in the kustomization.
    """
    root = os.path.relpath(MANIFESTS, folder)
    kustomization: Manifest = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{root}/{over}"],
        "components": [f"{root}/components/{component}" for component in components],
        # Over that one its namespace is to be said again, for what a component adds.
        **({"namespace": "shop"} if over == "overlays/namespaced" else {}),
        **(more or {}),
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    text = render(folder)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("over", ["base", "overlays/namespaced"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_goes_over_either_kind_of_rights(
    tmp_path: Path, component: str, over: str
) -> None:
    namespace = "elsewhere"
    alone = list(yaml.safe_load_all(rendered(over) or ""))
    needed = ["persistence"] if component == "cronjob" else []
    more = {"namespace": namespace}
    manifests = rendered_with(*needed, component, folder=tmp_path, over=over, more=more)
    keys = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(keys)) == len(keys)
    replaced = {"Deployment"} if component == "cronjob" else set()
    assert {each["kind"] for each in alone} - replaced <= {kind for kind, _ in keys}
    assert manifests != alone
    test_the_recommended_labels_are_set(manifests)
    # Nothing of it is left in a namespace where its pod is not.
    assert {
        each["metadata"]["namespace"] for each in manifests if "namespace" in each["metadata"]
    } == {namespace}


def test_a_user_s_own_overlay_sets_what_the_base_leaves_open(tmp_path: Path) -> None:
    """The sketch on top of the base's kustomization, with the token from a file beside it."""
    (tmp_path / "token").write_text("not a real one\n")
    name = {"name": "deployment-tracker", "namespace": "deployment-tracker"}
    digest = f"sha256:{'0123456789abcdef' * 4}"
    more: Manifest = {
        "configMapGenerator": [{**name, "behavior": "merge", "literals": ["ORG=acme"]}],
        "images": [{"name": "ghcr.io/example/deployment-tracker", "digest": digest}],
        "secretGenerator": [
            {**name, "files": ["token"], "options": {"disableNameSuffixHash": True}}
        ],
    }
    manifests = rendered_with(folder=tmp_path, over="overlays/production", more=more)
    assert load({}, environment_of(manifests)).org == "acme"
    assert container_of(manifests)["image"] == f"ghcr.io/example/deployment-tracker@{digest}"
    (volume,) = (each for each in pod_of(manifests)["volumes"] if "secret" in each)
    secret = one(manifests, "Secret")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"] == "deployment-tracker"
    assert set(secret["data"]) == {volume["secret"]["items"][0]["key"]}
    # With the hash in its name, which is the default, the pod must follow.
    del more["secretGenerator"][0]["options"]
    manifests = rendered_with(folder=tmp_path, over="overlays/production", more=more)
    (volume,) = (each for each in pod_of(manifests)["volumes"] if "secret" in each)
    hashed = one(manifests, "Secret")["metadata"]["name"]
    assert volume["secret"]["secretName"] == hashed != "deployment-tracker"


def test_the_github_app_component_takes_the_token_s_place(tmp_path: Path) -> None:
    name = {"name": "deployment-tracker", "namespace": "deployment-tracker"}
    literals = ["ORG=acme", "GH_APP_ID=123456", "GH_INSTALL_ID=7654321"]
    more = {"configMapGenerator": [{**name, "behavior": "merge", "literals": literals}]}
    manifests = rendered_with("github-app", folder=tmp_path, more=more)
    settings = load({}, environment_of(manifests))
    assert settings.credentials == "app"
    assert "API_TOKEN_FILE" not in environment_of(manifests)
    (volume,) = (each for each in pod_of(manifests)["volumes"] if "secret" in each)
    (mount,) = (
        each
        for each in container_of(manifests)["volumeMounts"]
        if each["name"] == volume["name"] and each["readOnly"]
    )
    (key,) = volume["secret"]["items"]
    assert settings.gh_app_priv_key_path == Path(mount["mountPath"]) / key["path"]
    assert volume["secret"]["defaultMode"] == 0o440


def test_production_is_all_components_that_any_cluster_takes() -> None:
    kustomization = yaml.safe_load(
        (MANIFESTS / "overlays" / "production" / "kustomization.yaml").read_text()
    )
    named = {Path(component).name for component in kustomization["components"]}
    assert named == set(COMPONENTS) - {NEEDS_CRDS, "github-app", "cronjob"}


def selected(selector: Mapping[str, str], manifests: list[Manifest]) -> bool:
    """Return whether a selector takes the pod."""
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return bool(selector) and selector.items() <= labels.items()


def test_the_network_policy_selects_the_pod_and_lets_through_what_is_needed(
    tmp_path: Path,
) -> None:
    manifests = rendered_with("network-policy", folder=tmp_path)
    policy = one(manifests, "NetworkPolicy")
    assert policy["metadata"]["namespace"] == one(manifests, "Deployment")["metadata"]["namespace"]
    spec = policy["spec"]
    assert selected(spec["podSelector"]["matchLabels"], manifests)
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = spec["ingress"]
    (port,) = container_of(manifests)["ports"]
    assert [each["port"] for each in ingress["ports"]] == [port["name"]]
    assert ingress["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    out = {(each["protocol"], each["port"]) for rule in spec["egress"] for each in rule["ports"]}
    assert out == {("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 6443)}


def test_the_namespace_that_reads_the_metrics_is_changed_as_its_comment_says(
    tmp_path: Path,
) -> None:
    path = "/spec/ingress/0/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"
    told = (MANIFESTS / "components" / "network-policy" / "kustomization.yaml").read_text()
    assert path in told
    patch = [{"op": "replace", "path": path, "value": "observability"}]
    more = {"patches": [{"target": {"kind": "NetworkPolicy"}, "patch": json.dumps(patch)}]}
    manifests = rendered_with("network-policy", folder=tmp_path, more=more)
    assert "observability" in json.dumps(one(manifests, "NetworkPolicy"))


def test_the_metrics_are_found_by_annotation_and_by_name_but_not_twice(tmp_path: Path) -> None:
    manifests = rendered_with("monitoring", folder=tmp_path)
    template = one(manifests, "Deployment")["spec"]["template"]["metadata"]
    assert template["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(METRICS_PORT),
        "prometheus.io/path": "/metrics",
    }
    service = one(manifests, "Service")
    assert "annotations" not in service["metadata"]
    assert selected(service["spec"]["selector"], manifests)
    assert service["spec"]["ports"] == [
        {"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics"}
    ]
    # A pod that is not ready has the more to tell.
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_the_operator_s_objects_select_the_pod_and_its_port(tmp_path: Path) -> None:
    manifests = rendered_with(NEEDS_CRDS, folder=tmp_path)
    monitor = one(manifests, "PodMonitor")["spec"]
    assert selected(monitor["selector"]["matchLabels"], manifests)
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == container_of(manifests)["ports"][0]["name"]


def test_only_one_component_needs_what_not_every_cluster_knows(manifests: list[Manifest]) -> None:
    builtin = re.compile(r"v1|(apps|batch|rbac\.authorization\.k8s\.io|networking\.k8s\.io)/v1")
    assert all(builtin.fullmatch(each["apiVersion"]) for each in manifests)


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
    manifests = rendered_with("persistence", "cronjob", folder=tmp_path, over=over)
    kinds = [manifest["kind"] for manifest in manifests]
    assert "Deployment" not in kinds
    cronjob = one(manifests, "CronJob")
    assert cronjob["metadata"]["labels"] == one(expected, "Deployment")["metadata"]["labels"]
    spec = cronjob["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod.pop("restartPolicy") == "Never"
    assert pod["containers"][0].pop("args") == ["once"]
    wanted = pod_of(expected)
    for served in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
        del wanted["containers"][0][served]  # by nobody: a run ends by itself
    assert pod == wanted
    # The claim, too: without what was posted before a run finds nothing to take back.
    assert one(manifests, "PersistentVolumeClaim") == one(expected, "PersistentVolumeClaim")
    deadline = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert deadline >= seconds_of_once() + pod["terminationGracePeriodSeconds"]


def test_the_cronjob_has_what_components_before_it_changed_in_the_pod(tmp_path: Path) -> None:
    wanted = container_of(rendered_with("workloads", folder=tmp_path))["env"]
    before = "workloads", "persistence"
    cronjob = one(rendered_with(*before, "cronjob", folder=tmp_path), "CronJob")
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["env"] == wanted


@pytest.mark.parametrize(
    ("over", "components"),
    [
        ("overlays/production", ["cronjob"]),
        ("overlays/production", ["github-app", "cronjob"]),
        ("base", ["workloads", "github-app", "persistence", "cronjob"]),
        ("base", ["workloads", "persistence", "github-app", "cronjob"]),
    ],
)
def test_the_cronjob_goes_over_whatever_has_a_claim(
    tmp_path: Path, over: str, components: list[str]
) -> None:
    manifests = rendered_with(*components, folder=tmp_path, over=over)
    pod = one(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    claim = one(manifests, "PersistentVolumeClaim")
    (volume,) = (each for each in pod["volumes"] if each["name"] == "data")
    assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    (workloads,) = (each for each in pod["containers"][0]["env"] if each["name"] == "WORKLOADS")
    assert workloads["value"] == "true"


def test_the_cronjob_can_not_be_had_without_a_claim_for_its_ledger(tmp_path: Path) -> None:
    """Each run would begin with nothing, and take back nothing, ever."""
    rendered_with("persistence", "cronjob", folder=tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        rendered_with("cronjob", folder=tmp_path)
    assert "persistentVolumeClaim.claimName" in failed.value.stderr


def test_the_cronjob_keeps_the_claim_that_its_pod_had(tmp_path: Path) -> None:
    """A restored one: on the claim of the usual name it would begin with nothing."""
    component = tmp_path / "restored"
    component.mkdir()
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "my-restored-claim"}}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "deployment-tracker"},
        "spec": {"template": {"spec": {"volumes": [claim]}}},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": [{"target": {"kind": "Deployment"}, "patch": yaml.safe_dump(patch)}],
    }
    (component / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    root = os.path.relpath(MANIFESTS / "components", tmp_path)
    components = [f"{root}/persistence", "restored", f"{root}/cronjob"]
    manifests = rendered_with(folder=tmp_path, more={"components": components})
    pod = one(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (volume,) = (each for each in pod["volumes"] if each["name"] == "data")
    assert volume["persistentVolumeClaim"] == {"claimName": "my-restored-claim"}

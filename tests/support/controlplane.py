"""
A real control plane for the end-to-end tests: etcd, kube-apiserver, kube-controller-manager.

The programs come from the folder that ``KUBEBUILDER_ASSETS`` names (``setup-envtest use -p path``
prints one). They listen on free loopback ports, with RBAC on and an audit log of every request, so
that a test can prove what a client did and what it was refused. There is no kubelet and no
scheduler; ``tests.support.kubelet`` plays both.

All of it is synchronous on purpose: one control plane serves the whole test session, while every
test has an event loop of its own. A shell stands over each program and kills it as soon as the
test process is gone, however it went, so an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

__all__ = [
    "ASSETS_VARIABLE",
    "AuditEntry",
    "ControlPlane",
    "ControlPlaneError",
    "find_assets",
]

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"

REQUIRED_PROGRAMS = ("etcd", "kube-apiserver")

SERVER_PORTS = range(20000, 30000)
"""
Ports that no system gives to outgoing connections (Linux does so from 32768, others from 49152).

A client that keeps trying while the API server is away would be given its port sooner or later, and
the API server could not come back to it.
"""

CONTROLLERS = (
    "deployment,replicaset,statefulset,daemonset,job,cronjob,garbagecollector,namespace"
    ",persistentvolumeclaim-protection-controller"  # or a claim could never be deleted
)

START_SECONDS = 45.0
"""How long a start may take on a busy machine; an idle one needs three to five seconds."""

STOP_SECONDS = 20.0
"""How long the end of a killed program may take; mostly it is none at all."""

# Runs the program given as arguments until it is told to stop by a line, or until standard input
# ends, which is when the test process has died; then it cleans up in its place ($0 is the folder).
# SIGKILL, since the data is thrown away. It ends after the program, so that whoever waits for it
# knows that the program's port is free: what is killed goes on listening until it is torn down,
# which takes a busy machine longer than the next one takes to ask for the same port.
WATCHDOG = """
"$@" </dev/null & child=$!
read -r told
kill -KILL "$child"; wait "$child"
[ "$told" = stop ] || rm -rf "$0"
"""

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
"""


class ControlPlaneError(Exception):
    """The control plane did not do what a test needs it to do; the text says what came back."""


def find_assets() -> Path | None:
    """Return the folder named by ``KUBEBUILDER_ASSETS``, or None if it is unset or lacks them."""
    named = os.environ.get(ASSETS_VARIABLE)
    if not named:
        return None
    folder = Path(named)
    if all(os.access(folder / program, os.X_OK) for program in REQUIRED_PROGRAMS):
        return folder
    return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """
    One request as the API server's audit log tells it.

    ``user`` is the full name (``system:serviceaccount:NAMESPACE:NAME`` for a ServiceAccount),
    ``code`` the HTTP status, ``decision`` is ``allow`` or ``forbid``. A watch is logged when it
    starts and once more when it ends: ``stage`` tells the two apart.
    """

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    uri: str
    user_agent: str
    code: int
    decision: str
    stage: str


@dataclasses.dataclass(slots=True)
class _Program:
    """One running program under its watchdog, and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    def stop(self) -> None:
        """Kill the program and wait for its end: then its port is free."""
        self.process.communicate(b"stop\n", timeout=STOP_SECONDS)

    def tail(self, lines: int = 15) -> str:
        """Return the last lines the program wrote, for an error message."""
        if not self.output.exists():
            return ""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


class ControlPlane:
    """
    etcd, kube-apiserver and (where the assets have it) kube-controller-manager on loopback.

    Use it as a context manager. ``url`` is https; ``ca_file`` is what a client must trust;
    ``token`` belongs to an administrator (group ``system:masters``). ``controller_requests`` is how
    many the controllers may make in a second (None: what kube-controller-manager allows itself).
    """

    def __init__(self, assets: Path, *, controller_requests: int | None = None) -> None:
        self._assets = assets
        self._controller_requests = controller_requests
        self._folder = Path(tempfile.mkdtemp(prefix="control-plane-"))
        self._programs: dict[str, _Program] = {}
        etcd_port, peer_port, api_port, manager_port = _free_ports(4)
        self._etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._peer_url = f"http://127.0.0.1:{peer_port}"
        self._api_port = api_port
        self._manager_port = manager_port
        self.url = f"https://127.0.0.1:{api_port}"
        self.token = secrets.token_hex(16)
        self.ca_file = self._folder / "certs" / "apiserver.crt"

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self._start_etcd()
            self.start_apiserver()
            if os.access(self._assets / "kube-controller-manager", os.X_OK):
                self._start_controller_manager()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything and remove the data; safe to call twice."""
        for program in reversed(self._programs.values()):
            program.stop()
        self._programs.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    # What a test does to the control plane.

    def start_apiserver(self) -> None:
        """Start kube-apiserver (again, on the same port) and wait until it says it is ready."""
        folder = self._folder
        self._start(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._api_port}",
            f"--cert-dir={self.ca_file.parent}",
            f"--service-account-key-file={folder / 'service-account.key'}",
            f"--service-account-signing-key-file={folder / 'service-account.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            f"--audit-log-path={folder / 'audit.log'}",
            "--audit-log-mode=blocking",
            f"--audit-policy-file={folder / 'audit-policy.yaml'}",
        )
        self._wait_until("kube-apiserver", self._is_ready)

    def stop_apiserver(self) -> None:
        """Kill kube-apiserver: connections are reset, new ones are refused; the data stays."""
        self._programs.pop("kube-apiserver").stop()

    def compact(self) -> None:
        """Make etcd forget every revision but the present one."""
        address = urlsplit(self._etcd_url).netloc
        revision = _post_json(address, "/v3/kv/range", {"key": "AA=="})["header"]["revision"]
        _post_json(address, "/v3/kv/compaction", {"revision": revision, "physical": True})

    # What a test asks of it.

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, dict[str, Any]]:
        """Send one request as the administrator or with ``token``; return status and JSON body."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._api_port, timeout=30, context=self._ssl_context()
        )
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Authorization": f"Bearer {token or self.token}", "Content-Type": content_type},
            )
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = {"text": raw.decode(errors="replace")}
        return response.status, answer

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """
        Create or update raw objects (server-side apply, forced).

        The plural is worked out from the kind, which suffices for the kinds of manifests.
        Raises ControlPlaneError with the server's message if one is refused.
        """
        for body in objects:
            path = object_path(body)
            status, answer = self.request(
                "PATCH",
                f"{path}?fieldManager=tests&force=true",
                body,
                content_type="application/apply-patch+yaml",
            )
            if status not in {200, 201}:
                message = f"apply {path}: {status} {answer.get('message', answer)}"
                raise ControlPlaneError(message)

    def service_account_token(self, namespace: str, name: str) -> str:
        """Return a fresh one-hour token of a ServiceAccount, creating account and namespace."""
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": namespace},
            },
        )
        status, answer = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 3600},
            },
        )
        if status not in {200, 201}:
            message = f"token of {namespace}/{name}: {status} {answer.get('message', answer)}"
            raise ControlPlaneError(message)
        return str(answer["status"]["token"])

    def kubeconfig(self, token: str | None = None, *, user: str = "admin") -> Path:
        """Write a kubeconfig (mode 0600) for a token, the administrator's unless told."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "tests",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self.ca_file),
                    },
                }
            ],
            "users": [{"name": user, "user": {"token": token or self.token}}],
            "contexts": [{"name": user, "context": {"cluster": "tests", "user": user}}],
            "current-context": user,
        }
        path = self._folder / f"kubeconfig-{user}-{secrets.token_hex(4)}"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=2))  # JSON is YAML
        return path

    def audit(self, *, user: str | None = None) -> list[AuditEntry]:
        """Return what the audit log holds so far, in order, of one user if named."""
        entries = []
        for line in (self._folder / "audit.log").read_text().splitlines():
            try:
                raw = json.loads(line)
            except ValueError:
                continue  # the last line is being written just now
            entry = _audit_entry(raw)
            if user is None or entry.user == user:
                entries.append(entry)
        return entries

    # How it starts.

    def _prepare(self) -> None:
        folder = self._folder
        subprocess.run(
            ["openssl", "genrsa", "-out", str(folder / "service-account.key"), "2048"],
            check=True,
            capture_output=True,
        )
        (folder / "tokens.csv").write_text(f"{self.token},admin,admin,system:masters\n")
        (folder / "audit-policy.yaml").write_text(AUDIT_POLICY)
        (folder / "audit.log").touch()

    def _start_etcd(self) -> None:
        self._start(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={self._peer_url}",
            f"--initial-advertise-peer-urls={self._peer_url}",
            f"--initial-cluster=default={self._peer_url}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )

    def _start_controller_manager(self) -> None:
        allowed = self._controller_requests
        pace = [f"--kube-api-qps={allowed}", f"--kube-api-burst={allowed}"] if allowed else []
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig()}",
            f"--controllers={CONTROLLERS}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._manager_port}",
            f"--cert-dir={self._folder / 'certs-manager'}",
            *pace,
        )

    def _start(self, name: str, *flags: str) -> None:
        output = self._folder / f"{name}.log"
        with output.open("ab") as stream:
            process = _spawn_watched([str(self._assets / name), *flags], stream, self._folder)
        self._programs[name] = _Program(name=name, process=process, output=output)

    def _wait_until(self, name: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.05)  # a poll with a deadline: the program tells nobody when it is ready
        message = f"{name} was not ready within {START_SECONDS:.0f} s\n"
        raise ControlPlaneError(message + self._programs[name].tail())

    def _is_ready(self) -> bool:
        if not self.ca_file.exists():
            return False
        try:
            status, answer = self.request("GET", "/readyz")
            # The namespace and the default roles are made after the start; tests rely on both.
            seen, _ = self.request("GET", "/api/v1/namespaces/default")
        except (OSError, http.client.HTTPException):
            return False
        return (status, answer.get("text"), seen) == (200, "ok", 200)

    def _ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))


PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses", "Endpoints": "endpoints"}
CLUSTER_SCOPED = frozenset({"Namespace", "Node", "ClusterRole", "ClusterRoleBinding"})


def object_path(body: Mapping[str, Any]) -> str:
    """Return the API path of one object, told from its apiVersion, kind, namespace and name."""
    api_version, kind = body["apiVersion"], body["kind"]
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    plural = PLURALS.get(kind, f"{kind.lower()}s")
    metadata = body["metadata"]
    if kind in CLUSTER_SCOPED:
        return f"{root}/{plural}/{metadata['name']}"
    namespace = metadata.get("namespace", "default")
    return f"{root}/namespaces/{namespace}/{plural}/{metadata['name']}"


def _spawn_watched(
    command: Sequence[str], output: IO[bytes], folder: Path
) -> subprocess.Popen[bytes]:
    """Start a program under the watchdog shell, in a process group of its own."""
    return subprocess.Popen(
        ["/bin/sh", "-c", WATCHDOG, str(folder), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
    )


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago; all are held at once so that none comes twice."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = secrets.choice(SERVER_PORTS)
            each = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _post_json(address: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        message = f"etcd {path}: {response.status} {raw[:256]!r}"
        raise ControlPlaneError(message)
    answer: dict[str, Any] = json.loads(raw)
    return answer


def _audit_entry(raw: Mapping[str, Any]) -> AuditEntry:
    reference = raw.get("objectRef") or {}
    return AuditEntry(
        user=raw["user"].get("username", ""),
        verb=raw["verb"],
        resource=reference.get("resource", ""),
        subresource=reference.get("subresource", ""),
        namespace=reference.get("namespace", ""),
        name=reference.get("name", ""),
        uri=raw["requestURI"],
        user_agent=raw.get("userAgent", ""),
        code=(raw.get("responseStatus") or {}).get("code", 0),
        decision=(raw.get("annotations") or {}).get("authorization.k8s.io/decision", ""),
        stage=raw["stage"],
    )

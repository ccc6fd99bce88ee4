"""
A pod's container, started as a kubelet starts one, but without an image.

`of_pod` reads a pod as the API server holds it: settings from its ConfigMap, Secrets and claims as
folders, the ServiceAccount's token where a program in a cluster looks for it. `Container.program`
runs this project's program behind a root of its own that can't be written to, in which the pod's
mount paths are those folders. It takes root, and Linux; `reason_against` says what is missing.
"""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.support.controlplane import ControlPlane
from tests.support.program import ROOT, Program

__all__ = ["Container", "of_pod", "reason_against"]

Json = dict[str, Any]

TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder
APP: Final = "/app"

# $1 is the new root, $2 the project, $3 how many mounts follow as pairs of folder and path, then
# the command. The machine's own folders are there to be read, but for those that may be a mount's.
ENTER: Final = """
set -eu
new=$1 project=$2 mounts=$3; shift 3
mount -t tmpfs tmpfs "$new"
for each in /*; do
  case $each in /tmp|/run|/var|/data|/app) continue ;; esac
  if [ -L "$each" ]; then cp -P "$each" "$new$each"; continue; fi
  [ -d "$each" ] || continue
  mkdir "$new$each"
  mount --bind "$each" "$new$each"
  case $each in /dev|/proc|/sys) ;; *) mount -o remount,bind,ro "$new$each" ;; esac
done
mkdir "$new/run" "$new/var" "$new/app" && ln -s ../run "$new/var/run"
mount --bind "$project" "$new/app" && mount -o remount,bind,ro "$new/app"
while [ "$mounts" -gt 0 ]; do
  mkdir -p "$new$2"
  mount --bind "$1" "$new$2"
  shift 2; mounts=$((mounts - 1))
done
mount -o remount,ro "$new"
exec chroot "$new" "$@"
"""


def reason_against() -> str | None:
    """Return why no container can be started on this machine, or None."""
    if os.geteuid() != 0:
        return "only root can give a program a root of its own"
    unshare = shutil.which("unshare")
    if unshare is None:
        return "unshare (util-linux) is not on PATH"
    done = subprocess.run(
        [unshare, "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return None if done.returncode == 0 else "this machine lets nobody mount anything"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """
    What a container of a pod is started with.

    `mounts` are folders of this machine by the paths of the container; `spec` is the container as
    it stands in the pod.
    """

    spec: Json
    environ: Mapping[str, str]
    mounts: Mapping[str, Path]
    new_root: Path

    @property
    def metrics_port(self) -> int:
        """Return the port that is named `metrics`."""
        (port,) = (each for each in self.spec["ports"] if each["name"] == "metrics")
        return int(port["containerPort"])

    def program(self) -> Program:
        """Return the program with the arguments of the pod, to be started."""
        assert "command" not in self.spec  # the image's ENTRYPOINT, which tests/test_image.py plays
        pairs = [part for path, folder in self.mounts.items() for part in (str(folder), path)]
        inside = Path(APP, Path(sys.executable).relative_to(ROOT))
        command = [
            *("unshare", "--mount", "sh", "-c", ENTER, "enter"),
            *(str(self.new_root), str(ROOT), str(len(self.mounts)), *pairs),
            *(str(inside), "-m", "tracker", *self.spec.get("args", [])),
        ]
        image = {"PYTHONPATH": APP, "HOME": "/tmp"}  # noqa: S108 - its home
        # An empty variable is one that is not set: tests of many programs turn the port off.
        environ = {**image, "METRICS_PORT": "", **self.environ}
        return Program(command, environ=environ, folder=self.new_root.parent)


def of_pod(plane: ControlPlane, pod: Json, *, token: str, folder: Path) -> Container:
    """
    Return the one container of a pod, its volumes below `folder`.

    `token` is its ServiceAccount's. A ConfigMap or Secret that is not there raises KeyError, as
    the pod would wait for it.
    """
    (spec,) = pod["spec"]["containers"]
    namespace = pod["metadata"]["namespace"]
    environ: dict[str, str] = {}
    for source in spec.get("envFrom", []):
        environ |= _read(plane, namespace, "configmaps", source["configMapRef"]["name"])["data"]
    for variable in spec.get("env", []):
        environ[variable["name"]] = variable.get("value", "")
        assert "valueFrom" not in variable, "not played here"
    address = urlsplit(plane.url)
    environ["KUBERNETES_SERVICE_HOST"] = str(address.hostname)
    environ["KUBERNETES_SERVICE_PORT"] = str(address.port)
    volumes = {
        volume["name"]: _volume(plane, namespace, volume, folder)
        for volume in pod["spec"]["volumes"]
    }
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in spec["volumeMounts"]}
    mounts[TOKEN_FOLDER] = folder / "account"
    mounts[TOKEN_FOLDER].mkdir()
    (mounts[TOKEN_FOLDER] / "token").write_text(token)
    (mounts[TOKEN_FOLDER] / "namespace").write_text(namespace)
    shutil.copy(plane.ca_file, mounts[TOKEN_FOLDER] / "ca.crt")
    new_root = folder / "root"
    new_root.mkdir()
    return Container(spec=spec, environ=environ, mounts=mounts, new_root=new_root)


def _volume(plane: ControlPlane, namespace: str, volume: Json, folder: Path) -> Path:
    """Return the folder of a volume, with what it holds."""
    here = folder / f"volume-{volume['name']}"
    here.mkdir()
    if "secret" in volume:
        secret = _read(plane, namespace, "secrets", volume["secret"]["secretName"])
        for key in volume["secret"]["items"]:
            (here / key["path"]).write_bytes(base64.b64decode(secret["data"][key["key"]]))
    elif "persistentVolumeClaim" in volume:
        _read(
            plane, namespace, "persistentvolumeclaims", volume["persistentVolumeClaim"]["claimName"]
        )
    else:
        assert "emptyDir" in volume, f"not played here: {volume}"
    return here


def _read(plane: ControlPlane, namespace: str, plural: str, name: str) -> Json:
    status, found = plane.request("GET", f"/api/v1/namespaces/{namespace}/{plural}/{name}")
    if status != 200:
        raise KeyError(f"{plural} {namespace}/{name}: {status}")
    return found

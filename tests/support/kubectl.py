"""
What kubectl prints: pods as large as real ones, in the style of its YAML and JSON.

kubectl's YAML has sorted keys, sequences at the column of their key, double quotes where a plain
text would be read as something else, `|` for text of several lines, and no other niceties.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, TextIO

import yaml

__all__ = ["a_pod", "many_pods", "write_json", "write_yaml"]

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./()][^\n:#'\"{}\[\]]*(?::[^\n\s#'\"{}\[\]]+)*")
REPLICAS: Final = 5


def many_pods(count: int) -> Iterator[dict[str, Any]]:
    """Yield pods of several namespaces, five to a Deployment, with two containers each."""
    for number in range(count):
        yield a_pod(number)


def a_pod(number: int = 0) -> dict[str, Any]:
    """Return one of many pods: what an API server tells of one, less its managedFields."""
    app = number // REPLICAS
    namespace, name = f"team-{app % 40:02}", f"service-{app:05}"
    template = hashlib.sha256(name.encode()).hexdigest()[:9]
    pod = f"{name}-{template}-{hashlib.sha256(str(number).encode()).hexdigest()[:5]}"
    uid = hashlib.sha256(pod.encode()).hexdigest()
    image = f"ghcr.io/acme/{name}:1.{app % 30}.{app % 7}"
    image_id = f"ghcr.io/acme/{name}@sha256:{hashlib.sha256(image.encode()).hexdigest()}"
    proxy = "docker.io/envoyproxy/envoy:v1.31.2"
    proxy_id = f"docker.io/envoyproxy/envoy@sha256:{hashlib.sha256(proxy.encode()).hexdigest()}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "annotations": {
                "cni.projectcalico.org/podIP": f"10.0.{number % 250}.7/32",
                "kubectl.kubernetes.io/restartedAt": "2024-05-01T10:00:00+02:00",
                "metadata.github.com/team": namespace,
                "prometheus.io/scrape": "true",
            },
            "creationTimestamp": f"2024-05-{1 + number % 28:02}T10:{number % 60:02}:00Z",
            "generateName": f"{name}-{template}-",
            "labels": {
                "app.kubernetes.io/instance": name,
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/version": f"1.{app % 30}",
                "pod-template-hash": template,
            },
            "name": pod,
            "namespace": namespace,
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "blockOwnerDeletion": True,
                    "controller": True,
                    "kind": "ReplicaSet",
                    "name": f"{name}-{template}",
                    "uid": f"{uid[:8]}-0000-4000-8000-{uid[:12]}",
                }
            ],
            "resourceVersion": str(1_000_000 + number),
            "uid": f"{uid[:8]}-1111-4000-8000-{uid[12:24]}",
        },
        "spec": {
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "podAffinityTerm": {
                                "labelSelector": {"matchLabels": {"app": name}},
                                "topologyKey": "kubernetes.io/hostname",
                            },
                            "weight": 100,
                        }
                    ]
                }
            },
            "containers": [
                _container("app", image),
                _container("proxy", proxy),
            ],
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": True,
            "nodeName": f"ip-10-0-{number % 200}-12.eu-central-1.compute.internal",
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
            "securityContext": {"fsGroup": 65532, "runAsNonRoot": True},
            "serviceAccount": name,
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": 30,
            "tolerations": [
                {
                    "effect": "NoExecute",
                    "key": f"node.kubernetes.io/{key}",
                    "operator": "Exists",
                    "tolerationSeconds": 300,
                }
                for key in ("not-ready", "unreachable")
            ],
            "volumes": [
                {"configMap": {"defaultMode": 420, "name": f"{name}-config"}, "name": "config"},
                {
                    "name": "kube-api-access-abcde",
                    "projected": {
                        "defaultMode": 420,
                        "sources": [
                            {
                                "serviceAccountToken": {
                                    "expirationSeconds": 3607,
                                    "path": "token",
                                }
                            },
                            {
                                "configMap": {
                                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                                    "name": "kube-root-ca.crt",
                                }
                            },
                        ],
                    },
                },
            ],
        },
        "status": {
            "conditions": [
                {
                    "lastProbeTime": None,
                    "lastTransitionTime": "2024-05-01T10:00:05Z",
                    "status": "True",
                    "type": kind,
                }
                for kind in (
                    "PodReadyToStartContainers",
                    "Initialized",
                    "Ready",
                    "ContainersReady",
                    "PodScheduled",
                )
            ],
            "containerStatuses": [
                _status("app", image, image_id, number),
                _status("proxy", proxy, proxy_id, number),
            ],
            "hostIP": f"10.0.{number % 200}.12",
            "phase": "Running",
            "podIP": f"10.0.{number % 250}.7",
            "podIPs": [{"ip": f"10.0.{number % 250}.7"}],
            "qosClass": "Burstable",
            "startTime": "2024-05-01T10:00:00Z",
        },
    }


def _container(name: str, image: str) -> dict[str, Any]:
    return {
        "args": ["--listen=:8080", "--log-level=info"],
        "env": [
            {"name": "GOMAXPROCS", "value": "2"},
            {
                "name": "POD_NAME",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
            },
            {"name": "SCRIPT", "value": "set -e\n# image: nothing\nimage: none\n- name: x\n"},
        ],
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "livenessProbe": {
            "failureThreshold": 3,
            "httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
            "periodSeconds": 10,
        },
        "name": name,
        "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
        "resources": {
            "limits": {"memory": "256Mi"},
            "requests": {"cpu": "100m", "memory": "128Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"mountPath": "/etc/app", "name": "config"},
            {
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "name": "kube-api-access-abcde",
                "readOnly": True,
            },
        ],
    }


def _status(name: str, image: str, image_id: str, number: int) -> dict[str, Any]:
    container_id = hashlib.sha256(f"{name}{number}".encode()).hexdigest()
    return {
        "containerID": f"containerd://{container_id}",
        "image": image,
        "imageID": image_id,
        "lastState": {},
        "name": name,
        "ready": True,
        "restartCount": 0,
        "started": True,
        "state": {"running": {"startedAt": "2024-05-01T10:00:03Z"}},
    }


def write_yaml(pods: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """Write a List as `kubectl get pods -o yaml` does."""
    stream.write("apiVersion: v1\nitems:\n")
    for pod in pods:
        lines = list(_mapping(pod, 2))
        lines[0] = "- " + lines[0][2:]
        stream.write("\n".join(lines) + "\n")
    stream.write('kind: List\nmetadata:\n  resourceVersion: ""\n')


def write_json(pods: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """Write a List as `kubectl get pods -o json` does."""
    stream.write('{\n    "apiVersion": "v1",\n    "items": [')
    separator = "\n"
    for pod in pods:
        text = json.dumps(pod, indent=4, sort_keys=True, ensure_ascii=False)
        stream.write(separator + " " * 8 + text.replace("\n", "\n" + " " * 8))
        separator = ",\n"
    stream.write(
        '\n    ],\n    "kind": "List",\n    "metadata": {\n        "resourceVersion": ""\n    }\n'
        "}\n"
    )


def _mapping(value: Mapping[str, Any], indent: int) -> Iterator[str]:
    margin = " " * indent
    for key, each in sorted(value.items()):
        name = f"{margin}{_scalar(key)}:"
        if isinstance(each, Mapping) and each:
            yield name
            yield from _mapping(each, indent + 2)
        elif isinstance(each, list) and each:
            yield name
            for element in each:
                if isinstance(element, Mapping):
                    lines = list(_mapping(element, indent + 2))
                    lines[0] = f"{margin}- {lines[0][indent + 2 :]}"
                    yield from lines
                else:
                    yield f"{margin}- {_scalar(element)}"
        elif isinstance(each, str) and "\n" in each and _is_block(each):
            yield f"{name} {'|' if each.endswith(chr(10)) else '|-'}"
            for line in each.removesuffix("\n").split("\n"):
                yield f"{margin}  {line}" if line else ""
        else:
            yield f"{name} {_scalar(each)}"


def _is_block(text: str) -> bool:
    """Tell whether a text of several lines is written as it stands."""
    return (
        text[0] not in " \n" and not text.endswith("\n\n") and text.replace("\n", "").isprintable()
    )


def _scalar(value: object) -> str:
    return _text(value) if isinstance(value, str) else json.dumps(value)


@lru_cache(2**16)
def _text(value: str) -> str:
    plain = value.isprintable() and value == value.strip() and _PLAIN.fullmatch(value)
    if plain and yaml.safe_load(value) == value:
        return value
    escaped = "".join(_escaped(char) for char in value)
    return f'"{escaped}"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else f"\\U{ord(char):08X}"

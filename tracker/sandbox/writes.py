"""
What creating, changing and deleting do to the simulated cluster, by the rules of a real one.

The rules that a client can notice are here: names, uids and generations; optimistic concurrency;
what a status update may touch; the two-step deletion of a pod that a kubelet has to finish;
finalizers; the garbage collection of dependents under the three propagation policies; namespaces
that go only when they are empty. What a story or a test asks for in process is *trusted*: it may
set the status, the uid and the creation time, which a client over HTTP may not.

Order of events and answers follow kube-apiserver 1.36; ``tests/test_conformance.py`` holds both to
the same expectations.
"""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tracker.sandbox.resources import NAMESPACES, PODS, RESOURCES, Resource
from tracker.sandbox.statuses import (
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
    success,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracker.sandbox.objects import Json, Key, ObjectStore, Stored

__all__ = ["DeleteOptions", "Writer"]

DEFAULT_GRACE_SECONDS: Final = 30
NAME_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
"""What generated names end in: no vowels, so that no words appear."""

IMMUTABLE_METADATA: Final = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
)

MUTABLE_POD_SPEC: Final = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")

FINISHED: Final = ("Succeeded", "Failed")
FOREGROUND: Final = "foregroundDeletion"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """
    How to delete.

    ``grace_seconds`` None means what the pod's spec says; ``propagation`` is Background, Foreground
    or Orphan; ``uid`` and ``version`` are preconditions, "" for none.
    """

    grace_seconds: int | None = None
    propagation: str = "Background"
    uid: str = ""
    version: str = ""

    @classmethod
    def parse(cls, body: Mapping[str, Any], query: Mapping[str, str]) -> DeleteOptions:
        """Return the options of a request: its body (DeleteOptions), else its query."""
        grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        policy = body.get("propagationPolicy", query.get("propagationPolicy")) or "Background"
        if body.get("orphanDependents") is True:
            policy = "Orphan"
        conditions = body.get("preconditions") or {}
        return cls(
            grace_seconds=None if grace is None else int(grace),
            propagation=policy,
            uid=conditions.get("uid", ""),
            version=conditions.get("resourceVersion", ""),
        )


class Writer:
    """Everything that changes the objects of one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, resource: Resource, namespace: str, body: Json, *, trusted: bool) -> Stored:
        """
        Create an object and return it.

        ``body`` becomes the store's. Raises the 4xx a client would get: no name, a name that is
        taken, a namespace that is not there or is going.
        """
        metadata = body.setdefault("metadata", {})
        name = _name_of(resource, metadata)
        if resource.namespaced:
            self._check_namespace(resource, namespace, name, create=trusted)
        key = (namespace if resource.namespaced else "", name)
        if self._store.get(resource, key) is not None:
            raise already_exists(resource, name)
        if not trusted:
            for field in ("uid", "creationTimestamp", "deletionTimestamp", "resourceVersion"):
                metadata.pop(field, None)
        fresh: Json = {
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": timestamp(),
        }
        if resource.namespaced:
            fresh["namespace"] = namespace
        if resource is not NAMESPACES:
            fresh["generation"] = 1
        body["metadata"] = fresh | metadata | {"name": name}
        body |= {"kind": resource.kind, "apiVersion": resource.api_version}
        _set_defaults(resource, body, trusted=trusted)
        return self._store.put(resource, key, body)

    def update(
        self,
        resource: Resource,
        key: Key,
        change: Callable[[Json], Json],
        *,
        subresource: str = "",
        trusted: bool = False,
    ) -> Stored:
        """
        Change an object: ``change`` gets its JSON (not to be altered) and returns the new one.

        A change that leaves everything as it is makes no event. One that takes the last finalizer
        off an object that is being deleted removes it.
        """
        before = self._get(resource, key)
        wanted = change(before.body)
        metadata = dict(wanted.get("metadata") or {})
        wanted_version = metadata.get("resourceVersion")
        if wanted_version and wanted_version != str(before.version):
            raise conflict(resource, key[1])
        if not trusted:
            _check_update(resource, before.body, wanted, subresource)
            wanted = _permitted(resource, before.body, wanted, subresource)
            metadata = dict(wanted["metadata"])
        for field in IMMUTABLE_METADATA:
            if field in before.body["metadata"]:
                metadata[field] = before.body["metadata"][field]
            elif not (trusted and field.startswith("deletion")):
                metadata.pop(field, None)
        metadata["resourceVersion"] = str(before.version)
        after = wanted | {
            "kind": resource.kind,
            "apiVersion": resource.api_version,
            "metadata": metadata,
        }
        if after == before.body:
            return before
        if "generation" in metadata and after.get("spec") != before.body.get("spec"):
            metadata["generation"] += 1
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            waits_for_kubelet = resource is PODS and metadata.get("deletionGracePeriodSeconds")
            if before.body["metadata"].get("finalizers") and not waits_for_kubelet:
                return self._remove(resource, key)
        return self._store.put(resource, key, after)

    def bind(self, key: Key, node: str) -> None:
        """Assign a pod to a node, as a scheduler does; 409 if it has one."""
        pod = self._get(PODS, key)
        taken = pod.body.get("spec", {}).get("nodeName")
        if taken:
            why = f'pod {key[1]} is already assigned to node "{taken}"'
            raise conflict(dataclasses.replace(PODS, plural="pods/binding"), key[1], why)

        def scheduled(body: Json) -> Json:
            status = body.get("status", {})
            condition = {
                "type": "PodScheduled",
                "status": "True",
                "lastProbeTime": None,
                "lastTransitionTime": timestamp(),
            }
            others = [
                each for each in status.get("conditions", ()) if each["type"] != "PodScheduled"
            ]
            return body | {
                "spec": body.get("spec", {}) | {"nodeName": node},
                "status": status | {"conditions": [*others, condition]},
            }

        self.update(PODS, key, scheduled, trusted=True)

    def delete(self, resource: Resource, key: Key, options: DeleteOptions) -> Json:
        """
        Delete an object, or begin to; return what the client is answered.

        A pod that is on a node and has not finished only gets its deletionTimestamp: the kubelet
        deletes it with grace 0 once its containers have stopped. Anything with finalizers waits
        for them.
        """
        before = self._get(resource, key)
        metadata = before.body["metadata"]
        if options.uid and options.uid != metadata["uid"]:
            why = (
                f"the UID in the precondition ({options.uid}) does not match the UID in record "
                f"({metadata['uid']}). The object might have been deleted and then recreated"
            )
            raise conflict(
                dataclasses.replace(resource, group="", plural=resource.kind), key[1], why
            )
        if options.version and options.version != str(before.version):
            raise conflict(resource, key[1])
        if resource is PODS:
            return self._delete_pod(before, options).body
        if resource is NAMESPACES:
            return self._delete_namespace(before).body
        return self._delete_other(before, options)

    # Deleting, by kind.

    def _delete_pod(self, before: Stored, options: DeleteOptions) -> Stored:
        metadata, spec = before.body["metadata"], before.body.get("spec", {})
        grace = options.grace_seconds
        if "deletionTimestamp" in metadata:
            # Being deleted already: the time can only be cut short.
            if grace is None or grace >= metadata["deletionGracePeriodSeconds"] > 0:
                return before
        elif grace is None:
            grace = spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
        grace = max(grace, 0)
        finished = before.body.get("status", {}).get("phase") in FINISHED
        if not spec.get("nodeName") or finished:
            grace = 0
        marked = self._mark_deleted(before, grace)
        if grace or marked.body["metadata"].get("finalizers"):
            return marked
        return self._remove(PODS, marked.key)

    def _delete_namespace(self, before: Stored) -> Stored:
        name = before.key[1]
        if before.body["status"]["phase"] != "Terminating":
            body = before.body | {"status": {"phase": "Terminating"}}
            before = self._mark_deleted(before, None, body=body)
        for resource in RESOURCES:
            if resource.namespaced:
                for stored in self._store.present(resource, namespace=name):
                    if self._store.get(resource, stored.key) is not None:
                        self.delete(resource, stored.key, DeleteOptions())
        return self._finish_namespace(name) or before

    def _finish_namespace(self, name: str) -> Stored | None:
        """Remove a namespace that is going once nothing is left in it."""
        namespace = self._store.get(NAMESPACES, ("", name))
        if namespace is None or namespace.body["status"]["phase"] != "Terminating":
            return None
        if any(self._store.present(each, namespace=name) for each in RESOURCES if each.namespaced):
            return None
        return self._store.remove(NAMESPACES, ("", name))

    def _delete_other(self, before: Stored, options: DeleteOptions) -> Json:
        resource, key = before.resource, before.key
        metadata = before.body["metadata"]
        if options.propagation == "Orphan":
            self._orphan(metadata["uid"])
        finalizers = list(metadata.get("finalizers") or ())
        dependents = self._store.dependents(metadata["uid"])
        waits = options.propagation == "Foreground" and bool(dependents)
        if waits and FOREGROUND not in finalizers:
            finalizers.append(FOREGROUND)
        if finalizers:
            if "deletionTimestamp" not in metadata:
                body = before.body | {"metadata": metadata | {"finalizers": finalizers}}
                before = self._mark_deleted(before, 0, body=body)
            if waits:
                self._delete_dependents(dependents, options)
            left = self._store.get(resource, key)
            return before.body if left is None else left.body
        self._remove(resource, key)
        details = {"name": key[1], "group": resource.group, "kind": resource.plural}
        return success(details=details | {"uid": metadata["uid"]})

    def _mark_deleted(
        self, before: Stored, grace: int | None, *, body: Json | None = None
    ) -> Stored:
        """
        Set the deletion time (and grace) of an object; its generation grows the first time.

        ``body`` is the object with what else changes in the same write.
        """
        body = before.body if body is None else body
        metadata = dict(body["metadata"])
        if "deletionTimestamp" not in metadata and "generation" in metadata:
            metadata["generation"] += 1
        metadata["deletionTimestamp"] = timestamp(after=grace or 0)
        if grace is not None:
            metadata["deletionGracePeriodSeconds"] = grace
        return self._store.put(before.resource, before.key, body | {"metadata": metadata})

    def _remove(self, resource: Resource, key: Key) -> Stored:
        """Take an object away, then what hangs on it: dependents, owners that wait, namespaces."""
        removed = self._store.remove(resource, key)
        metadata = removed.body["metadata"]
        self._delete_dependents(self._store.dependents(metadata["uid"]), DeleteOptions())
        for reference in metadata.get("ownerReferences") or ():
            owner = self._store.owner(reference["uid"])
            if owner is not None:
                self._release(owner)
        if resource.namespaced:
            self._finish_namespace(key[0])
        return removed

    def _release(self, owner: Stored) -> None:
        """Remove an owner that waits in the foreground once its last dependent has gone."""
        metadata = owner.body["metadata"]
        finalizers = metadata.get("finalizers") or []
        waits = FOREGROUND in finalizers and "deletionTimestamp" in metadata
        if not waits or self._store.dependents(metadata["uid"]):
            return
        left = [each for each in finalizers if each != FOREGROUND]
        self.update(
            owner.resource,
            owner.key,
            lambda body: body | {"metadata": body["metadata"] | {"finalizers": left}},
            trusted=True,
        )

    def _delete_dependents(self, dependents: list[Stored], options: DeleteOptions) -> None:
        passed_on = DeleteOptions(propagation=options.propagation)
        for stored in dependents:
            if self._store.get(stored.resource, stored.key) is not None:
                self.delete(stored.resource, stored.key, passed_on)

    def _orphan(self, uid: str) -> None:
        for stored in self._store.dependents(uid):
            references = stored.body["metadata"]["ownerReferences"]
            left = [each for each in references if each["uid"] != uid]
            metadata = stored.body["metadata"] | {"ownerReferences": left}
            if not left:
                del metadata["ownerReferences"]
            self._store.put(stored.resource, stored.key, stored.body | {"metadata": metadata})

    # Looking up.

    def _get(self, resource: Resource, key: Key) -> Stored:
        stored = self._store.get(resource, key)
        if stored is None:
            raise not_found(resource, key[1])
        return stored

    def _check_namespace(
        self, resource: Resource, namespace: str, name: str, *, create: bool
    ) -> None:
        stored = self._store.get(NAMESPACES, ("", namespace))
        if stored is None:
            if not create:
                raise not_found(NAMESPACES, namespace)
            self.create(NAMESPACES, "", {"metadata": {"name": namespace}}, trusted=True)
        elif stored.body["status"]["phase"] == "Terminating":
            why = (
                f"unable to create new content in namespace {namespace} "
                "because it is being terminated"
            )
            raise forbidden(resource, name, why)


def timestamp(*, after: float = 0) -> str:
    """Return the time now (or seconds after it) as Kubernetes writes it: whole seconds, UTC."""
    moment = datetime.now(UTC) + timedelta(seconds=after)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _name_of(resource: Resource, metadata: Mapping[str, Any]) -> str:
    if metadata.get("name"):
        return str(metadata["name"])
    if metadata.get("generateName"):
        ending = "".join(secrets.choice(NAME_ALPHABET) for _ in range(5))
        return f"{metadata['generateName']}{ending}"
    raise invalid(
        resource,
        "",
        field="metadata.name",
        cause="FieldValueRequired",
        why="Required value: name or generateName is required",
    )


def _set_defaults(resource: Resource, body: Json, *, trusted: bool) -> None:
    """Fill in what a real server fills in, as far as somebody here reads it."""
    if not trusted:
        body.pop("status", None)
    if resource is NAMESPACES:
        labels = {"kubernetes.io/metadata.name": body["metadata"]["name"]}
        body["metadata"]["labels"] = (body["metadata"].get("labels") or {}) | labels
        body.setdefault("spec", {"finalizers": ["kubernetes"]})
        body.setdefault("status", {"phase": "Active"})
        return
    if resource is PODS:
        spec = body.setdefault("spec", {})
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
        body.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})
        return
    body.setdefault("status", {})


def _check_update(
    resource: Resource, before: Mapping[str, Any], after: Mapping[str, Any], subresource: str
) -> None:
    """Raise the 4xx for a change that a client may not make."""
    name = before["metadata"]["name"]
    metadata = after.get("metadata") or {}
    if metadata.get("name", name) != name:
        message = (
            f"the name of the object ({metadata['name']}) "
            f"does not match the name on the URL ({name})"
        )
        raise bad_request(message)
    uid = metadata.get("uid") or before["metadata"]["uid"]
    if uid != before["metadata"]["uid"]:
        why = f'Invalid value: "{uid}": field is immutable'
        raise invalid(resource, name, field="metadata.uid", cause="FieldValueInvalid", why=why)
    if resource is PODS and not subresource:
        old, new = _fixed_spec(before), _fixed_spec(after)
        if old != new:
            why = (
                "Forbidden: pod updates may not change fields other than "
                "`spec.containers[*].image`,`spec.initContainers[*].image`,"
                "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
                "tolerations),`spec.terminationGracePeriodSeconds`"
            )
            raise invalid(resource, name, field="spec", cause="FieldValueForbidden", why=why)


def _fixed_spec(body: Mapping[str, Any]) -> Json:
    """Return the part of a pod's spec that cannot be changed."""
    spec = {k: v for k, v in (body.get("spec") or {}).items() if k not in MUTABLE_POD_SPEC}
    for field in ("containers", "initContainers"):
        spec[field] = [
            {k: v for k, v in container.items() if k != "image"}
            for container in spec.get(field) or ()
        ]
    return spec


def _permitted(
    resource: Resource, before: Mapping[str, Any], after: Mapping[str, Any], subresource: str
) -> Json:
    """Return the change cut down to what this way of writing may touch."""
    if subresource != "status":
        kept = {"status": before["status"]} if "status" in before else {}
        return {k: v for k, v in after.items() if k != "status"} | kept
    # A pod's status update may carry labels and annotations along; others' may not.
    metadata = after.get("metadata") or {} if resource is PODS else before["metadata"]
    return dict(before) | {"metadata": metadata, "status": after.get("status") or {}}

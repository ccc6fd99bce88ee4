"""
How a patch changes an object: JSON merge patch, and strategic merge patch for the known lists.

Both return a new object and leave the arguments as they are; parts that a patch does not touch are
shared between the old object and the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracker.sandbox.statuses import bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["merge_patch", "strategic_merge_patch"]

MERGE_KEYS: Mapping[str, str] = {
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""
Lists whose entries are merged one by one, and the field that tells which.

Every other list is replaced as a whole, ``containerStatuses`` for one: a kubelet always sends all.
"""

MERGED_SETS = frozenset({"finalizers"})
"""Lists of plain values that a strategic patch adds to."""


def merge_patch(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON value, by RFC 7396
    """Return ``target`` changed by a JSON merge patch (RFC 7396): null removes, lists replace."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_merge_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return ``target`` changed by a strategic merge patch.

    As the merge patch, but the lists of `MERGE_KEYS` are merged by their key, and the directives
    ``$patch: delete``, ``$patch: replace`` and ``$deleteFromPrimitiveList/…`` are followed.
    ``$setElementOrder/…`` and ``$retainKeys`` say nothing about content and are passed over.
    """
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = dict(target)
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [each for each in result.get(name) or [] if each not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before = result.get(key)
            result[key] = strategic_merge_patch(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, list):
            result[key] = _merged_list(key, result.get(key) or [], value)
        else:
            result[key] = value
    return result


def _merged_list(name: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if name in MERGED_SETS:
        return [*target, *(each for each in patch if each not in target)]
    if {"$patch": "replace"} in patch:
        return [each for each in patch if each != {"$patch": "replace"}]
    key = MERGE_KEYS.get(name)
    if key is None or not all(isinstance(each, dict) for each in patch):
        return patch
    if not all(key in each for each in patch):
        message = f"map: {patch} does not contain declared merge key: {key}"
        raise bad_request(message)
    merged = {each.get(key): each for each in target}
    for each in patch:
        if each.get("$patch") == "delete":
            merged.pop(each[key], None)
        else:
            merged[each[key]] = strategic_merge_patch(merged.get(each[key], {}), each)
    return list(merged.values())

"""
The versioned store behind the simulated API server: objects, their history, and who watches them.

Every write makes a new object and one event under the next resource version; nothing stored is
ever changed in place. A bounded history of events lets a watch resume from an older version and a
paged list go on at the version it began with; what has left the history is answered with 410, as by
a real server whose etcd was compacted. Each object is encoded once, however many lists and watches
send it.

The store is plain and synchronous and knows no rules about what a write may do; those are the
subject of ``tracker.sandbox.writes``. It belongs to one event loop and takes no locks.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, Literal

from tracker.sandbox.statuses import expired

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tracker.sandbox.resources import Resource
    from tracker.sandbox.selection import Selector

__all__ = [
    "HISTORY",
    "Event",
    "EventType",
    "Form",
    "Json",
    "Key",
    "ObjectStore",
    "Stored",
    "Subscription",
    "encode",
    "order_of",
]

Json = dict[str, Any]
Key = tuple[str, str]
"""Namespace ("" for cluster-scoped objects) and name."""

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Form = Literal["full", "metadata"]
"""Whether a client wants objects or only their metadata (PartialObjectMetadata)."""

HISTORY: Final = 50_000
"""How many events of one resource are kept unless told otherwise."""

SNAPSHOTS: Final = 8
"""How many versions that lists are being paged through are kept ready."""

METADATA_HEAD: Final = b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":'

_encode_text = json.JSONEncoder(separators=(",", ":")).encode


def order_of(key: Key) -> str:
    """Return what lists are ordered by: etcd's key, in which namespace ``a-b`` is before ``a``."""
    return f"{key[0]}/{key[1]}"


def encode(value: object) -> bytes:
    """Return compact JSON; lone surrogates are escaped, so that encoding never fails."""
    return _encode_text(value).encode()


class Stored:
    """One object at one version, with its encodings made when first asked for."""

    __slots__ = ("_item", "_metadata", "body", "key", "resource", "version")

    def __init__(self, resource: Resource, key: Key, body: Json, version: int) -> None:
        self.resource = resource
        self.key = key
        self.body = body
        self.version = version
        self._item: bytes | None = None
        self._metadata: bytes | None = None

    def item(self, form: Form) -> bytes:
        """Return the object as an entry of a list, where whole objects carry no kind."""
        if form == "metadata":
            if self._metadata is None:
                self._metadata = METADATA_HEAD + encode(self.body["metadata"]) + b"}"
            return self._metadata
        if self._item is None:
            bare = {k: v for k, v in self.body.items() if k not in {"kind", "apiVersion"}}
            self._item = encode(bare)
        return self._item

    def alone(self, form: Form) -> bytes:
        """Return the object as an answer of its own, with kind and apiVersion."""
        if form == "metadata":
            return self.item(form)
        resource = self.resource
        head = f'{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'
        return head.encode() + self.item(form)[1:]

    def at(self, version: int) -> Stored:
        """Return the same object under another resource version."""
        metadata = self.body["metadata"] | {"resourceVersion": str(version)}
        return Stored(self.resource, self.key, self.body | {"metadata": metadata}, version)


class Event:
    """
    One change: what the object was before and what it became.

    ``current`` of a deletion is the last state under the version of the deletion.
    """

    __slots__ = ("_departed", "_lines", "current", "previous", "type", "version")

    def __init__(self, kind: EventType, current: Stored, previous: Stored | None) -> None:
        self.type: EventType = kind
        self.version = current.version
        self.current = current
        self.previous = previous
        self._departed: Stored | None = None
        self._lines: dict[tuple[EventType, Form], bytes] = {}

    def seen_through(self, selector: Selector | None) -> EventType | None:
        """Return what this change looks like through a selector, None if it shows nothing."""
        if selector is None:
            return self.type
        was = self.previous is not None and selector(self.previous.body)
        now = self.type != "DELETED" and selector(self.current.body)
        if was:
            return "MODIFIED" if now else "DELETED"
        return "ADDED" if now else None

    def line(self, seen_as: EventType, form: Form) -> bytes:
        """Return the line of a watch for this event; it is encoded once for all watches."""
        known = self._lines.get((seen_as, form))
        if known is not None:
            return known
        shown = self.current
        if seen_as == "DELETED" and self.type != "DELETED" and self.previous is not None:
            # It left the selection: the watch is told the last state that was selected.
            if self._departed is None:
                self._departed = self.previous.at(self.version)
            shown = self._departed
        made = watch_line(seen_as, shown.alone(form))
        self._lines[seen_as, form] = made
        return made


def watch_line(event_type: str, body: bytes) -> bytes:
    """Return one line of a watch."""
    return b'{"type":"' + event_type.encode() + b'","object":' + body + b"}\n"


class Subscription:
    """
    One watch's place in the stream of one resource.

    Lines gather in ``pending`` and ``wake`` is set; the server sends them. ``fell_behind`` tells
    that the client reads so slowly that the watch must be ended, as a real server does.
    """

    def __init__(  # noqa: PLR0913 - what a watch asks for, all by keyword
        self,
        *,
        resource: Resource,
        namespace: str,
        selector: Selector | None,
        form: Form,
        wake: asyncio.Event,
        limit: int,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.form = form
        self.wake = wake
        self.pending: deque[bytes] = deque()
        self.fell_behind = False
        self.after = 0
        self.selector = selector
        self._limit = limit

    def offer(self, event: Event) -> None:
        """Take an event if this watch covers it."""
        if event.version <= self.after:
            return  # it asked for a version that is still to come
        if self.namespace and event.current.key[0] != self.namespace:
            return
        seen_as = event.seen_through(self.selector)
        if seen_as is not None:
            self.push(event.line(seen_as, self.form))

    def present(self, objects: Sequence[Stored]) -> None:
        """Take the present objects as if each had just been added."""
        for stored in objects:
            self.push(watch_line("ADDED", stored.alone(self.form)))

    def push(self, line: bytes) -> None:
        """Take a line as it is."""
        self.pending.append(line)
        self.fell_behind = self.fell_behind or len(self.pending) > self._limit
        self.wake.set()


class _Table:
    """The objects of one resource, their order, and the events that led here."""

    __slots__ = ("events", "floor", "keys", "objects", "snapshots", "subscriptions")

    def __init__(self, floor: int) -> None:
        self.objects: dict[Key, Stored] = {}
        self.keys: list[Key] = []
        self.events: deque[Event] = deque()
        self.floor = floor
        self.snapshots: OrderedDict[int, tuple[Stored, ...]] = OrderedDict()
        self.subscriptions: set[Subscription] = set()


class ObjectStore:
    """All objects of the simulated cluster, by resource, namespace and name."""

    def __init__(self, resources: Sequence[Resource], *, history: int = HISTORY) -> None:
        self.version = 1
        self._history = history
        self._tables = {resource.plural: _Table(self.version) for resource in resources}
        self._by_uid: dict[str, tuple[Resource, Key]] = {}
        self._dependents: dict[str, set[tuple[str, Key]]] = {}

    # Reading.

    def get(self, resource: Resource, key: Key) -> Stored | None:
        """Return one object as it is now, None if there is none."""
        return self._tables[resource.plural].objects.get(key)

    def present(
        self, resource: Resource, *, namespace: str = "", selector: Selector | None = None
    ) -> list[Stored]:
        """Return the objects as they are now, in the order of lists."""
        return _selected(self._all(resource), namespace, selector)

    def at_version(self, resource: Resource, version: int) -> tuple[Stored, ...]:
        """
        Return every object of a resource as it was at a version, in order.

        Raises the 410 if the history no longer reaches back that far.
        """
        table = self._tables[resource.plural]
        known = table.snapshots.get(version)
        if known is not None:
            table.snapshots.move_to_end(version)
            return known
        if version < table.floor:
            message = "The resourceVersion for the provided list is too old."
            raise expired(message)
        snapshot = _undone(table, version)
        table.snapshots[version] = snapshot
        if len(table.snapshots) > SNAPSHOTS:
            table.snapshots.popitem(last=False)
        return snapshot

    def floor(self, resource: Resource) -> int:
        """Return the oldest version that a watch of this resource can resume from."""
        return self._tables[resource.plural].floor

    def dependents(self, uid: str) -> list[Stored]:
        """Return the objects that name a uid among their owners, in a stable order."""
        found = sorted(self._dependents.get(uid, ()))
        return [self._tables[plural].objects[key] for plural, key in found]

    def owner(self, uid: str) -> Stored | None:
        """Return the object with a uid, None if it is gone."""
        place = self._by_uid.get(uid)
        return None if place is None else self.get(*place)

    # Writing.

    def put(self, resource: Resource, key: Key, body: Json) -> Stored:
        """Store an object under the next version and tell the watches; it becomes the store's."""
        table = self._tables[resource.plural]
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        stored = Stored(resource, key, body, self.version)
        previous = table.objects.get(key)
        table.objects[key] = stored
        if previous is None:
            bisect.insort(table.keys, key, key=order_of)
        else:
            self._unlink(previous)
        self._link(stored)
        self._publish(table, Event("MODIFIED" if previous else "ADDED", stored, previous))
        return stored

    def remove(self, resource: Resource, key: Key) -> Stored:
        """Remove an object and tell the watches; return its last state, one version later."""
        table = self._tables[resource.plural]
        previous = table.objects.pop(key)
        del table.keys[bisect.bisect_left(table.keys, order_of(key), key=order_of)]
        self._unlink(previous)
        self.version += 1
        last = previous.at(self.version)
        self._publish(table, Event("DELETED", last, previous))
        return last

    def compact(self) -> None:
        """Forget all history: a resume from any older version is answered with 410."""
        for table in self._tables.values():
            table.events.clear()
            table.snapshots.clear()
            table.floor = self.version

    # Watching.

    def subscribe(self, subscription: Subscription, *, since: int | None) -> int | None:
        """
        Let a watch see what happens from now on, after what it has missed.

        With ``since`` it first gets the events after that version, with None the present objects
        as ADDED. Returns None, or the oldest version it could resume from if ``since`` is older
        than that; it is not subscribed then.
        """
        table = self._tables[subscription.resource.plural]
        if since is None:
            subscription.present(
                _selected(
                    self._all(subscription.resource),
                    subscription.namespace,
                    subscription.selector,
                )
            )
        elif since < table.floor:
            return table.floor
        else:
            subscription.after = since
            for event in _after(table, since):
                subscription.offer(event)
        table.subscriptions.add(subscription)
        return None

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a watch; safe to call twice."""
        self._tables[subscription.resource.plural].subscriptions.discard(subscription)

    def _all(self, resource: Resource) -> Iterator[Stored]:
        table = self._tables[resource.plural]
        return map(table.objects.__getitem__, table.keys)

    def _publish(self, table: _Table, event: Event) -> None:
        table.events.append(event)
        while len(table.events) > self._history:
            table.floor = table.events.popleft().version
        for subscription in table.subscriptions:
            subscription.offer(event)

    def _link(self, stored: Stored) -> None:
        metadata = stored.body["metadata"]
        self._by_uid[metadata["uid"]] = (stored.resource, stored.key)
        for reference in metadata.get("ownerReferences") or ():
            place = (stored.resource.plural, stored.key)
            self._dependents.setdefault(reference["uid"], set()).add(place)

    def _unlink(self, stored: Stored) -> None:
        metadata = stored.body["metadata"]
        self._by_uid.pop(metadata["uid"], None)
        for reference in metadata.get("ownerReferences") or ():
            places = self._dependents.get(reference["uid"], set())
            places.discard((stored.resource.plural, stored.key))
            if not places:
                self._dependents.pop(reference["uid"], None)


def _selected(objects: Iterator[Stored], namespace: str, selector: Selector | None) -> list[Stored]:
    tests: list[Callable[[Stored], bool]] = []
    if namespace:
        tests.append(lambda stored: stored.key[0] == namespace)
    if selector is not None:
        tests.append(lambda stored: selector(stored.body))
    return [stored for stored in objects if all(test(stored) for test in tests)]


def _after(table: _Table, version: int) -> list[Event]:
    """Return the events after a version, oldest first; the recent end is looked at first."""
    recent = itertools.takewhile(lambda event: event.version > version, reversed(table.events))
    return list(recent)[::-1]


def _undone(table: _Table, version: int) -> tuple[Stored, ...]:
    """Return what the objects were at a version, by undoing the events after it."""
    objects: Mapping[Key, Stored] = table.objects
    newer = _after(table, version)
    if not newer:
        return tuple(map(objects.__getitem__, table.keys))
    then = dict(objects)
    for event in reversed(newer):
        if event.previous is None:
            then.pop(event.current.key)
        else:
            then[event.current.key] = event.previous
    return tuple(then[key] for key in sorted(then, key=order_of))

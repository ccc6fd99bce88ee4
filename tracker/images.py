"""
Which image a container runs: from three texts of the API server to name, version and digest.

A pod carries three texts per container: what its author asked for (`spec…image`), what the
runtime says it resolved that to (`status…image`) and what the runtime runs (`status…imageID`).
Only the last can tell the digest, and runtimes write it in several shapes; most of those name a
*config*, not a manifest, and a record with a wrong digest is worse than no record. Name and
version come from the first text, but only while the second agrees that they are of the same
moment as the digest: after an in-place change the new tag stands in the spec for a while next
to the old digest.

Everything here is text that the author of a pod can choose. What does not match the grammar of
an image reference is not used.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, NewType

__all__ = [
    "EVERY_IMAGE",
    "Digest",
    "Image",
    "ImageRules",
    "Named",
    "Reference",
    "Resolution",
    "SkipReason",
    "Source",
    "parse_image_id",
    "parse_reference",
    "trace_image",
]

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits, naming a manifest."""

MAX_NAME = 256
"""Characters GitHub takes for an artifact's name."""
MAX_VERSION = 100
"""Characters GitHub takes for a version; a longer tag is left out."""
MAX_TEXT = 1024
"""Characters of an image text that are looked at: the longest valid reference is shorter."""

# https://github.com/distribution/reference: domain[:port]/path[:tag][@digest], path in lower case.
_DIGEST = r"sha256:[0-9a-f]{64}"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<repository>(?:(?:{_HOST})(?::[0-9]{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    rf"(?:@(?P<digest>{_DIGEST}))?"
)
_PULLABLE = "docker-pullable://"
_CONFIG_ID = re.compile(r"(?:[a-z0-9-]+://)?(?:sha256:)?[0-9a-f]{64}")


class SkipReason(StrEnum):
    """Why a pod or a container is not recorded. A closed set: metrics and listings are by these."""

    BARE = "bare-pod"
    STATIC = "static-pod"
    IGNORED = "ignored"
    NAMESPACE = "excluded-namespace"
    MALFORMED = "malformed"
    IMAGE = "excluded-image"
    NO_DIGEST = "no-manifest-digest"
    IMAGE_NAME = "image-name-too-long"
    DEPLOYMENT_NAME = "deployment-name-too-long"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image reference in parts; `tag` and `digest` are None where the text has none."""

    repository: str
    tag: str | None
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """
    What GitHub is told of an image: a name of 1-256 characters, a tag of 1-100 or None.

    `repository` is the GitHub repository that the operator's rules name for it, or None. `asked`
    is the name that the pod asks for where the status tells of another image, "" where it asks for
    none that can be read; None where the two agree, or name and version are the pod's own words
    after all. `asked_repository` is the one of that name. A status tells of another image while an
    in-place change is under way, and for good where the node knows the same content by another
    name: a runtime tells one of them, whichever was asked for
    (https://github.com/kubernetes/kubernetes/issues/51017).
    """

    name: str
    version: str | None
    digest: Digest
    repository: str | None = None
    asked: str | None = None
    asked_repository: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRules:
    """
    What the operator says of images, by globs over their names.

    An image is recorded when it matches one of `include` (or there is none) and none of `exclude`.
    `repositories` are (glob, GitHub repository), of which the first that matches counts. A glob
    is held against the name as it is written and as it is written out: `docker.io/library/*`
    matches `nginx`.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    repositories: tuple[tuple[str, str], ...] = ()

    def apply(self, image: Image) -> "Image | SkipReason":
        """Return the image with its repository, or why it is not recorded."""
        if self.leave_out(image.name):
            return SkipReason.IMAGE
        if not self.repositories:
            return image
        asked = self._repository_of(image.asked) if image.asked else None
        return replace(image, repository=self._repository_of(image.name), asked_repository=asked)

    def _repository_of(self, name: str) -> str | None:
        names = _spellings(name)
        return next((each for glob, each in self.repositories if _matches(names, [glob])), None)

    def leave_out(self, name: str) -> bool:
        """Tell whether images of this name are not recorded."""
        if not (self.include or self.exclude):
            return False
        names = _spellings(name)
        if self.include and not _matches(names, self.include):
            return True
        return _matches(names, self.exclude)


class Source(StrEnum):
    """Which of a container's texts told something of its image."""

    SPEC = "spec.image"
    IMAGE_ID = "status.imageID"


Named = tuple[str, str]
"""An image's name and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """
    What a container runs, and how that is known.

    `image` is a reason when it can't be recorded, and None when it is not known yet.

    `digest_from` and `name_from` are None where there is no image to tell of. `named` is what the
    pod and its status name in accord where that tells no digest: name and version, if it has one.
    """

    image: Image | SkipReason | None
    digest_from: Source | None = None
    name_from: Source | None = None
    named: Named | None = None


EVERY_IMAGE: Final = ImageRules()
"""Rules that leave nothing out and name no repository."""


def parse_reference(text: str) -> Reference | None:
    """Return the parts of an image reference, or None when the text is not one."""
    if len(text) > MAX_TEXT:
        return None
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    digest = match["digest"]
    return Reference(
        repository=match["repository"],
        tag=match["tag"],
        digest=Digest(digest) if digest else None,
    )


def parse_image_id(image_id: str) -> Reference | None:
    """
    Return what a container status's `imageID` names, or None if it names no manifest.

    Only `repository@sha256:<64 lower-case hex>` (with or without `docker-pullable://`) does. A
    bare `sha256:`, `docker://sha256:` or plain hex is a config id (or, in CRI-O, an id of its
    own): None. The returned reference always has a digest.
    """
    reference = parse_reference(image_id.removeprefix(_PULLABLE))
    return reference if reference is not None and reference.digest is not None else None


@lru_cache(maxsize=2048)
def trace_image(spec_image: str, status_image: str, image_id: str) -> Resolution:
    """
    Return the image a container runs, and which text told what.

    An empty `imageID` means that nothing was started yet: the container is to be looked at
    again, not skipped. The pods of a workload say the same, and each of them at every change of its
    state: what was worked out for a few thousand images is remembered.
    """
    if not image_id:
        return Resolution(image=None)
    spec = parse_reference(spec_image)
    running = parse_image_id(image_id)
    status = parse_reference(status_image)
    agrees = spec is not None and _same_moment(spec, status, running)
    digest_from = name_from = Source.IMAGE_ID
    if running is None:
        # A digest written into the spec names the manifest that the runtime's id does not.
        if not agrees or spec is None or spec.digest is None:
            version = _version(spec.tag) if agrees and spec is not None else None
            named = None if spec is None or version is None else (spec.repository, version)
            return Resolution(image=SkipReason.NO_DIGEST, named=named)
        running, digest_from = spec, Source.SPEC
    name, tag = running.repository, None
    asked: str | None = "" if spec is None else spec.repository
    if agrees and spec is not None:
        name, tag, asked, name_from = spec.repository, spec.tag, None, Source.SPEC
    if len(name) > MAX_NAME:
        return Resolution(image=SkipReason.IMAGE_NAME)
    assert running.digest is not None  # noqa: S101 - parse_image_id and the branch above hold it
    image = Image(name=name, version=_version(tag), digest=running.digest, asked=asked)
    return Resolution(image=image, digest_from=digest_from, name_from=name_from)


def _same_moment(spec: Reference, status: Reference | None, running: Reference | None) -> bool:
    """
    Tell whether the spec's image and the running one are of the same moment.

    They are when the status names the spec's repository and tag, or names none (empty, or a
    config id: runtimes write that for images pulled by digest). A digest in the spec settles it
    alone: it either is the running one or is not.
    """
    named = status is not None and not _CONFIG_ID.fullmatch(_text(status))
    if spec.digest is not None and running is not None:
        if spec.digest == running.digest:
            return True
        # An index and its platform's manifest differ, as do old and new: only a status that
        # names the spec's very tag tells the first from the second.
        if not named or spec.tag is None:
            return False
    if status is None or not named:
        return True
    if status.digest is not None and spec.digest is not None:
        return status.digest == spec.digest
    return _familiar(status) == _familiar(spec)


def _version(tag: str | None) -> str | None:
    return tag if tag is not None and len(tag) <= MAX_VERSION else None


def _text(reference: Reference) -> str:
    tag = "" if reference.tag is None else f":{reference.tag}"
    return reference.repository + tag


def _familiar(reference: Reference) -> tuple[str, str | None]:
    """Return repository and tag as every runtime would write them, for comparing only."""
    tag = reference.tag
    if tag is None and reference.digest is None:
        tag = "latest"
    return _written_out(reference.repository), tag


def _written_out(repository: str) -> str:
    """Return a repository with the registry and path that it means: `docker.io/library/nginx`."""
    first, slash, rest = repository.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first[0] == "["):
        domain, path = "docker.io", repository
    else:
        domain, path = first, rest
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in path:
        path = f"library/{path}"
    return f"{domain}/{path}"


def _spellings(name: str) -> frozenset[str]:
    return frozenset({name, _written_out(name)})


def _matches(names: Iterable[str], globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs for name in names)

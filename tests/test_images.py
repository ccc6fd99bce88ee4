"""From the three image texts of a container to name, version and digest."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import digest
from tracker.images import (
    MAX_NAME,
    MAX_TEXT,
    Image,
    ImageRules,
    SkipReason,
    parse_image_id,
    parse_reference,
    trace_image,
)

pytestmark = pytest.mark.fault("W1")

A, B = digest("a"), digest("b")
HEX = "a" * 64
REPOSITORY = "ghcr.io/acme/app"


def resolved(spec: str, status: str, image_id: str) -> Image | SkipReason | None:
    """Return the image alone."""
    return trace_image(spec, status, image_id).image


@pytest.mark.parametrize(
    ("text", "repository", "tag", "named"),
    [
        pytest.param("nginx", "nginx", None, None, id="bare"),
        pytest.param("nginx:1.25", "nginx", "1.25", None, id="tag"),
        pytest.param(f"nginx@{A}", "nginx", None, A, id="digest"),
        pytest.param(f"nginx:1.25@{A}", "nginx", "1.25", A, id="tag-and-digest"),
        pytest.param("library/nginx", "library/nginx", None, None, id="path"),
        pytest.param("localhost/app:v1", "localhost/app", "v1", None, id="localhost"),
        pytest.param("reg.example:5000/app", "reg.example:5000/app", None, None, id="port"),
        pytest.param("reg.example:5000/a/b:v1", "reg.example:5000/a/b", "v1", None, id="port-tag"),
        pytest.param("[2001:db8::1]:5000/app:v1", "[2001:db8::1]:5000/app", "v1", None, id="ipv6"),
        pytest.param("Reg.Example/app", "Reg.Example/app", None, None, id="host-case"),
        pytest.param("a__b/c-d.e/f--g:T_1.x-y", "a__b/c-d.e/f--g", "T_1.x-y", None, id="marks"),
        pytest.param(f"app:{'t' * 128}", "app", "t" * 128, None, id="longest-tag"),
    ],
)
def test_a_reference_is_taken_apart(
    text: str, repository: str, tag: str | None, named: str | None
) -> None:
    found = parse_reference(text)
    assert found is not None
    assert (found.repository, found.tag, found.digest) == (repository, tag, named)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " nginx",
        "nginx ",
        "nginx\n",
        "nginx:",
        "nginx@",
        "Nginx",
        "acme/App",
        "https://ghcr.io/acme/app",
        "../app",
        "acme//app",
        "acme/app/",
        "-app",
        f"app:{'t' * 129}",
        "app:-tag",
        f"app@sha256:{'a' * 63}",
        f"app@sha256:{'A' * 64}",
        f"app@{A}@{A}",
        f"app@{A}:v1",
        "app:v1\u2028",
        "app:\u0661",
        "\x1b[31mapp",
        "\ud800",
        "a" * (MAX_TEXT + 1),
    ],
)
def test_what_is_no_reference_is_not_taken(text: str) -> None:
    assert parse_reference(text) is None


IMAGE_IDS = [
    pytest.param(f"{REPOSITORY}@{A}", True, id="containerd"),
    pytest.param(f"docker-pullable://{REPOSITORY}@{A}", True, id="docker-pullable"),
    pytest.param(f"{REPOSITORY}:v1@{A}", True, id="with-tag"),
    pytest.param("", False, id="empty"),
    pytest.param(A, False, id="bare-digest"),
    pytest.param(f"docker://{A}", False, id="docker-config-id"),
    pytest.param(f"docker-pullable://{A}", False, id="pullable-without-repository"),
    pytest.param(HEX, False, id="cri-o-hex"),
    pytest.param(f"docker://{REPOSITORY}@{A}", False, id="other-scheme"),
    pytest.param(f"docker-pullable://docker-pullable://{REPOSITORY}@{A}", False, id="twice"),
    pytest.param(f"{REPOSITORY}@sha512:{'a' * 128}", False, id="sha512"),
    pytest.param(f"{REPOSITORY}@SHA256:{HEX}", False, id="upper-case-algorithm"),
    pytest.param(f"{REPOSITORY}@sha256:{HEX.upper()}", False, id="upper-case-hex"),
    pytest.param(f"{REPOSITORY}@sha256:{'a' * 65}", False, id="too-long"),
    pytest.param(f"{REPOSITORY}@sha256:{'a' * 63}g", False, id="not-hex"),
    pytest.param(f"{REPOSITORY}@{A} ", False, id="trailing-blank"),
    pytest.param(f"{REPOSITORY}@{A}\n", False, id="trailing-line-break"),
    pytest.param(f"{REPOSITORY}@{A}/x", False, id="trailing-path"),
    pytest.param(f"@{A}", False, id="no-repository"),
    pytest.param(f"{REPOSITORY}:v1", False, id="no-digest"),
]


@pytest.mark.parametrize(("image_id", "names_one"), IMAGE_IDS)
def test_only_a_manifest_digest_comes_out_of_an_image_id(image_id: str, *, names_one: bool) -> None:
    found = parse_image_id(image_id)
    assert (found is not None) == names_one
    assert found is None or (found.repository, found.digest) == (REPOSITORY, A)


@pytest.mark.parametrize(("image_id", "names_one"), IMAGE_IDS)
def test_an_image_id_that_names_no_manifest_is_never_posted(
    image_id: str, *, names_one: bool
) -> None:
    found = resolved("app:v1", "app:v1", image_id)
    if not image_id:
        assert found is None
    elif names_one:
        assert found == Image(name="app", version="v1", digest=A)
    else:
        assert found is SkipReason.NO_DIGEST


@pytest.mark.parametrize(
    ("spec", "status", "image_id", "expected"),
    [
        pytest.param("app:v1", "app:v1", f"app@{A}", ("app", "v1", A), id="plain"),
        pytest.param("app", "app:latest", f"app@{A}", ("app", None, A), id="implicit-latest"),
        pytest.param(
            "nginx:1", "docker.io/library/nginx:1", f"docker.io/library/nginx@{A}",
            ("nginx", "1", A), id="docker-hub-short",
        ),
        pytest.param(
            "acme/app:1", "docker.io/acme/app:1", f"docker.io/acme/app@{A}",
            ("acme/app", "1", A), id="docker-hub-path",
        ),
        pytest.param(
            "index.docker.io/library/nginx:1", "nginx:1", f"nginx@{A}",
            ("index.docker.io/library/nginx", "1", A), id="docker-hub-index",
        ),
        pytest.param(
            "reg:5000/app:1", "reg:5000/app:1", f"reg:5000/app@{A}",
            ("reg:5000/app", "1", A), id="port",
        ),
        pytest.param("app:v1", "", f"app@{A}", ("app", "v1", A), id="no-status-image"),
        pytest.param("app:v1", A, f"app@{A}", ("app", "v1", A), id="status-is-a-config-id"),
        pytest.param("app:v1", HEX, f"app@{A}", ("app", "v1", A), id="status-is-hex"),
        pytest.param("app:v1", "app:v1", f"mirror/app@{A}", ("app", "v1", A), id="mirror"),
        # In the middle of a change in place: the spec is ahead of what runs.
        pytest.param("app:v2", "app:v1", f"app@{A}", ("app", None, A), id="new-tag-old-digest"),
        pytest.param(
            "new:v1", "old:v1", f"old@{A}", ("old", None, A), id="new-repository-old-digest"
        ),
        pytest.param(
            f"app:v2@{B}", "app:v1", f"app@{A}", ("app", None, A), id="new-digest-and-tag"
        ),
        pytest.param(
            f"app:v2@{B}", A, f"app@{A}", ("app", None, A), id="new-digest-status-config-id"
        ),
        pytest.param(f"app@{B}", f"app@{A}", f"app@{A}", ("app", None, A), id="new-digest-alone"),
        pytest.param(f"new@{B}", "", f"old@{A}", ("old", None, A), id="new-digest-no-status"),
        pytest.param(
            f"app:v1@{B}", f"app:v1@{A}", f"app@{A}", ("app", None, A), id="same-tag-new-digest"
        ),
        # Pulled by digest.
        pytest.param(f"app@{A}", f"app@{A}", f"app@{A}", ("app", None, A), id="by-digest"),
        pytest.param(f"app@{A}", "app:v7", f"app@{A}", ("app", None, A), id="digest-has-a-tag-too"),
        pytest.param(
            f"app:v1@{A}", "app:other", f"app@{A}", ("app", "v1", A), id="by-tag-and-digest"
        ),
        pytest.param(f"app:v1@{B}", "app:v1", f"app@{A}", ("app", "v1", A), id="index"),
        # The runtime tells a config id: a digest of the spec names the manifest.
        pytest.param(f"app@{A}", "", f"docker://{B}", ("app", None, A), id="config-id-spec-digest"),
        pytest.param(f"app:v1@{A}", B, B, ("app", "v1", A), id="bare-config-id-spec-digest"),
        pytest.param("app:v1", "app:v1", B, None, id="config-id-and-no-digest-anywhere"),
        pytest.param(f"app:v2@{A}", "app:v1", B, None, id="config-id-spec-ahead"),
        # A pod's author can write anything.
        pytest.param("Not An Image", "", f"app@{A}", ("app", None, A), id="hostile-spec"),
        pytest.param("\ud800", "\x00", f"app@{A}", ("app", None, A), id="hostile-texts"),
        pytest.param(f"app:{'t' * 100}", "", f"app@{A}", ("app", "t" * 100, A), id="longest"),
        pytest.param(f"app:{'t' * 101}", "", f"app@{A}", ("app", None, A), id="version-too-long"),
    ],
)  # fmt: skip
def test_name_version_and_digest_are_of_one_moment(
    spec: str, status: str, image_id: str, expected: tuple[str, str | None, str] | None
) -> None:
    found = resolved(spec, status, image_id)
    if expected is None:
        assert found is SkipReason.NO_DIGEST
    else:
        assert isinstance(found, Image)
        assert (found.name, found.version, found.digest) == expected


def test_a_name_that_github_would_not_take_is_skipped() -> None:
    assert resolved("a" * (MAX_NAME + 1), "", f"app@{A}") is SkipReason.IMAGE_NAME
    assert isinstance(resolved("a" * MAX_NAME, "", f"app@{A}"), Image)


REPOSITORIES = st.sampled_from(["app", "ghcr.io/acme/app", "old", "reg.example:5000/app"])
TAGS = st.sampled_from(["v1", "v2", "latest"])
DIGESTS = st.sampled_from([A, B, digest("c")])


@given(repository=REPOSITORIES, tags=st.tuples(TAGS, TAGS), digests=st.tuples(DIGESTS, DIGESTS))
def test_a_new_tag_never_stands_next_to_an_old_digest(
    repository: str, tags: tuple[str, str], digests: tuple[str, str]
) -> None:
    """The window of a change in place: the spec is new, status and imageID are still old."""
    (old_tag, new_tag), (old, new) = tags, digests
    for spec in (f"{repository}:{new_tag}", f"{repository}:{new_tag}@{new}", f"{repository}@{new}"):
        found = resolved(spec, f"{repository}:{old_tag}", f"{repository}@{old}")
        assert isinstance(found, Image)
        assert found.digest == old
        assert found.version in {None, old_tag} or new == old


# What runtimes write into `imageID`, by a grammar of its forms.

HEX64 = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.sampled_from(["app", "ghcr.io/acme/app", "docker.io/library/nginx", "reg:5000/a/b"])
MANIFESTS = st.builds(
    "{}{}@sha256:{}".format, st.sampled_from(["", "docker-pullable://"]), NAMES, HEX64
)
NO_MANIFESTS = st.one_of(
    st.builds("{}{}".format, st.sampled_from(["", "sha256:", "docker://sha256:"]), HEX64),
    st.builds("{}@sha512:{}{}".format, NAMES, HEX64, HEX64),
    st.builds("{}@sha256:{}A".format, NAMES, HEX64.map(lambda text: text[1:])),
    st.builds("{}@sha256:{}{}".format, NAMES, HEX64, st.sampled_from(["0", "\n", " ", "x", ":v1"])),
    st.builds("{}@sha256:{}".format, NAMES, HEX64.map(lambda text: text[1:])),
    st.builds("@sha256:{}".format, HEX64),
    st.builds("docker://{}@sha256:{}".format, NAMES, HEX64),
    NAMES,
)


@given(name=NAMES, image_id=MANIFESTS)
def test_a_manifest_is_taken_by_its_digest(name: str, image_id: str) -> None:
    found = resolved(f"{name}:v1", f"{name}:v1", image_id)
    assert isinstance(found, Image)
    assert image_id.endswith(f"@{found.digest}")
    assert (found.name, found.version) == (name, "v1")


@given(name=NAMES, image_id=NO_MANIFESTS, written=st.none() | HEX64)
def test_what_names_no_manifest_is_never_told(
    name: str, image_id: str, written: str | None
) -> None:
    """Only a digest that stands in the spec, and that the status does not contradict, is used."""
    spec = f"{name}:v1" if written is None else f"{name}:v1@sha256:{written}"
    found = resolved(spec, f"{name}:v1", image_id)
    if written is None:
        assert found is SkipReason.NO_DIGEST
    else:
        assert isinstance(found, Image)
        assert found.digest == f"sha256:{written}"
    # In the midst of a change nothing is known of what runs.
    assert resolved(spec, f"{name}:v0", image_id) is SkipReason.NO_DIGEST


# What the operator says of images.


def rules_of(images: str) -> ImageRules:
    globs = images.split()
    return ImageRules(
        include=tuple(glob for glob in globs if not glob.startswith("!")),
        exclude=tuple(glob[1:] for glob in globs if glob.startswith("!")),
    )


def ruled(name: str, *, images: str = "", repositories: tuple[tuple[str, str], ...] = ()) -> str:
    """Return the repository that rules give an image, "-" for none, or the reason to skip it."""
    rules = replace(rules_of(images), repositories=repositories)
    found = rules.apply(Image(name=name, version=None, digest=A))
    return found.value if isinstance(found, SkipReason) else found.repository or "-"


@pytest.mark.parametrize(
    ("name", "images", "recorded"),
    [
        ("nginx", "", True),
        ("nginx", "nginx", True),
        ("nginx", "docker.io/*", True),
        ("docker.io/library/nginx", "nginx", False),
        ("ghcr.io/acme/app", "docker.io/*", False),
        ("ghcr.io/acme/app", "docker.io/* ghcr.io/acme/*", True),
        ("ghcr.io/acme/debug", "ghcr.io/acme/* !*/debug", False),
        ("nginx", "!docker.io/library/*", False),
        ("ghcr.io/acme/app", "!docker.io/*", True),
        ("reg:5000/a", "reg:5000/?", True),
    ],
)
def test_images_are_recorded_by_globs(name: str, images: str, *, recorded: bool) -> None:
    assert ruled(name, images=images) == ("-" if recorded else "excluded-image")


def test_the_first_rule_that_matches_names_the_repository() -> None:
    rules = (("ghcr.io/acme/shop-*", "shop"), ("ghcr.io/acme/*", "platform"))
    assert ruled("ghcr.io/acme/shop-api", repositories=rules) == "shop"
    assert ruled("ghcr.io/acme/other", repositories=rules) == "platform"
    assert ruled("nginx", repositories=rules) == "-"


@pytest.mark.parametrize(
    ("images", "recorded"),
    [
        ("registry.local/*", True),
        ("!ghcr.io/acme/*", True),
        ("ghcr.io/acme/*", False),
        ("docker.io/*", False),
    ],
)
def test_an_image_is_recorded_by_the_name_that_is_recorded(images: str, *, recorded: bool) -> None:
    """What a pod asks for may be another one, which has yet to be pulled."""
    found = trace_image("ghcr.io/acme/app:1", "registry.local/a:1", f"registry.local/a@{A}").image
    assert found == Image(name="registry.local/a", version=None, digest=A, asked="ghcr.io/acme/app")
    kept = rules_of(images).apply(found)
    assert kept == (found if recorded else SkipReason.IMAGE)


def test_each_name_of_an_image_has_a_repository_of_its_own() -> None:
    aliased = Image(name="registry.local/a", version=None, digest=A, asked="ghcr.io/acme/app")
    acme, local = ("ghcr.io/acme/*", "shop"), ("registry.local/*", "other")
    for rules, own, asked in [
        ([acme], None, "shop"),
        ([acme, local], "other", "shop"),
        ([local], "other", None),
        ([], None, None),
    ]:
        found = ImageRules(repositories=tuple(rules)).apply(aliased)
        assert isinstance(found, Image)
        assert (found.repository, found.asked_repository) == (own, asked)


@pytest.mark.parametrize(
    ("spec", "status", "named"),
    [
        ("app:v1", "app:v1", ("app", "v1")),
        ("app:v1", "docker.io/library/app:v1", ("app", "v1")),
        ("app:v1", f"sha256:{'e' * 64}", ("app", "v1")),
        ("app", "app:latest", None),
        (f"app:{'t' * 101}", f"app:{'t' * 101}", None),
        ("app:v2", "app:v1", None),
        ("app:v1", "other:v1", None),
        ("App:v1", "App:v1", None),
    ],
)
def test_what_has_no_digest_may_have_a_name_and_a_version_all_the_same(
    spec: str, status: str, named: tuple[str, str] | None
) -> None:
    found = trace_image(spec, status, f"sha256:{'c' * 64}")
    assert (found.image, found.named) == (SkipReason.NO_DIGEST, named)


TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Lu"]), max_size=20),
    st.from_regex(r"(docker(-pullable)?://)?[a-z/.:@-]{0,12}@?(sha256:)?[0-9a-fA-F]{63,65}"),
    st.builds("{}{}{}".format, REPOSITORIES, st.sampled_from(["", ":v1", "@", "://"]), DIGESTS),
)
MANIFEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")


@given(spec=TEXTS, status=TEXTS, image_id=TEXTS)
def test_any_texts_give_an_image_a_reason_or_nothing(spec: str, status: str, image_id: str) -> None:
    found = resolved(spec, status, image_id)
    if not isinstance(found, Image):
        assert found is None or isinstance(found, SkipReason)
        assert (found is None) == (not image_id)
        return
    source = image_id if MANIFEST.search(image_id) and parse_image_id(image_id) else spec
    assert source.endswith(f"@{found.digest}")
    assert 1 <= len(found.name) <= MAX_NAME
    assert found.name.isprintable()
    assert found.version is None or 1 <= len(found.version) <= 100


@pytest.mark.parametrize(
    "unit", ["a", "a-", "a/", "a.", "a_", "-", "a:", "1:", "[", "a@", "A.", "--a"]
)
def test_a_text_made_to_confuse_the_grammar_is_read_like_any_other(unit: str) -> None:
    """A grammar that backtracks would not come back from these before the test's time is over."""
    for text in (unit * (MAX_TEXT // len(unit)), unit * (MAX_TEXT // len(unit) - 1) + "!"):
        parse_reference(text)
        parse_image_id(text)

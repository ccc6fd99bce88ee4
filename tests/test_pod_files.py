"""Pods from a file: however it is written, they are read as if the API server had sent them."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import kubectl
from tests.support.builders import raw_container, raw_pod
from tracker import pod_files
from tracker.errors import PodFileError
from tracker.pod_files import PodFile
from tracker.pods import read_pod

Json = dict[str, Any]


def read(text: str) -> list[Mapping[str, Any]]:
    return list(PodFile(name="pods", stream=io.StringIO(text)).read_objects())


def as_kubectl_yaml(*pods: Json) -> str:
    stream = io.StringIO()
    kubectl.write_yaml(pods, stream)
    return stream.getvalue()


def as_kubectl_json(*pods: Json) -> str:
    stream = io.StringIO()
    kubectl.write_json(pods, stream)
    return stream.getvalue()


def as_list(*pods: Json) -> Json:
    return {"apiVersion": "v1", "kind": "List", "items": list(pods), "metadata": {}}


WRITERS: dict[str, Callable[..., str]] = {
    "kubectl's YAML": as_kubectl_yaml,
    "kubectl's JSON": as_kubectl_json,
    "compact JSON": lambda *pods: json.dumps(as_list(*pods)),
    "kind before items": lambda *pods: json.dumps(dict(reversed(as_list(*pods).items()))),
    "a JSON array": lambda *pods: json.dumps(pods),
    "JSON documents": lambda *pods: "\n".join(json.dumps(pod, indent=1) for pod in pods),
    "YAML documents": lambda *pods: yaml.safe_dump_all(pods, allow_unicode=True),
    "YAML documents with all between them": lambda *pods: (
        "%YAML 1.1\n--- # one\n"
        + "\n...\n---\n# another\n\n---\n".join(yaml.safe_dump(pod) for pod in pods)
    ),
    "narrow YAML": lambda *pods: yaml.safe_dump(as_list(*pods), width=20),
    "wide indents": lambda *pods: yaml.safe_dump(as_list(*pods), indent=6, allow_unicode=True),
    "double quotes": lambda *pods: yaml.safe_dump(as_list(*pods), default_style='"'),
    "single quotes": lambda *pods: yaml.safe_dump(as_list(*pods), default_style="'", width=10**6),
    "flowing YAML": lambda *pods: (
        "items: " + yaml.safe_dump(list(pods), default_flow_style=True, width=40) + "kind: List\n"
    ),
    "indented sequences": lambda *pods: (
        "items:\n"
        + "".join(
            "    - " + yaml.safe_dump(pod).replace("\n", "\n      ").rstrip(" ") for pod in pods
        )
        + "kind: List\n"
    ),
    "with comments": lambda *pods: (
        as_kubectl_yaml(*pods)
        .replace("\n  metadata:", "\n# a comment\n\n  # another\n  metadata:")
        .replace("  spec:", "  spec: # said")
    ),
    "CRLF": lambda *pods: as_kubectl_yaml(*pods).replace("\n", "\r\n"),
}

TEXTS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\t :#-'\"\\{}[]&*|>%@`"),
    max_size=30,
)
PODS = st.builds(
    raw_pod,
    uid=st.uuids().map(str),
    name=st.from_regex(r"[a-z0-9]{1,5}-[a-z0-9.]{1,8}", fullmatch=True),
    labels=st.dictionaries(
        st.sampled_from(["pod-template-hash", "app", "rollouts-pod-template-hash", "y", "1"]),
        TEXTS | st.sampled_from(["123", "5e8", "true", "null", "~", "5d8f7c9b4", "no", "0x1f"]),
    ),
    annotations=st.dictionaries(
        st.sampled_from(
            [f"metadata.github.com/{word}" for word in ("ignore", "team", "runtime-risks", "")]
            + ["kubernetes.io/config.mirror", "example.com/last-applied", "true", "a b"]
        ),
        TEXTS,
    ),
    resourceVersion=st.sampled_from(["12", "0012", "x", ""]),
    creationTimestamp=st.sampled_from(["2024-05-01T10:00:00Z", "2024-05-01", ""]),
    deletionTimestamp=st.none() | st.just("2024-05-01T10:00:00Z"),
)


def with_more(pod: Json, text: str) -> Json:
    """Return a pod with what nobody looks at, hostile text among it."""
    more = {"command": ["sh", "-c", text], "env": [{"name": "image", "value": text}]}
    pod["spec"] = {
        "containers": [{**pod["spec"]["containers"][0], **more}],
        "initContainers": [raw_container("init", "busybox", restartPolicy="Always", **more)],
        "volumes": [{"name": "x", "configMap": {"items": [{"key": "k", "path": text}]}}],
    }
    return pod


@settings(max_examples=60)
@given(pods=st.lists(st.builds(with_more, PODS, TEXTS), min_size=1, max_size=3))
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pod_is_the_same_however_it_is_written(writer: str, pods: list[Json]) -> None:
    if "CRLF" in writer or "comments" in writer:
        pods = json.loads(json.dumps(pods).replace("\\n", " ").replace("\\r", " "))
    text = WRITERS[writer](*pods)
    if "JSON" in writer or "kind" in writer:
        assert read(text) == pods
    stream = io.StringIO(text, newline=None)
    found = list(PodFile(name="pods", stream=stream).read_objects())
    assert [read_pod(pod) for pod in found] == [read_pod(pod) for pod in pods]


LINES = st.sampled_from(
    [
        *("", " ", "# x", "    # x", "  x", "    x: y", "- x", "    - x", "  - name: x"),
        *("    name : x", '    "name": x', "    ? name", "    : x", "    <<: {name: x}"),
        *("    name:x", "      image: x", "    name:", "      - image: x", "        x: |", "\t"),
    ]
)
EDITS = st.sampled_from(["insert", "delete", "repeat", "left", "right", "empty", "twice"])


@st.composite
def edited(draw: st.DrawFn) -> str:
    """Return what kubectl prints of a pod after somebody edited it, line by line."""
    pods = list(kubectl.many_pods(1))
    lines = as_kubectl_yaml(*pods).split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(3, len(lines) - 4))
        match draw(EDITS):
            case "insert":
                lines.insert(at, draw(LINES))
            case "delete":
                del lines[at]
            case "repeat":
                lines.insert(at, draw(st.sampled_from(lines[3:-4])))
            case "left":
                lines[at] = lines[at].removeprefix(" ")
            case "right":
                lines[at] = " " + lines[at]
            case "empty":
                lines[at] = lines[at].partition(":")[0] + ":"
            case _:
                lines[at] = lines[at].replace(": ", ": : ")
    return "\n".join(lines)


@settings(max_examples=1500)
@given(text=edited())
def test_what_somebody_edited_is_read_as_pyyaml_reads_it_or_refused(text: str) -> None:
    hold_to_pyyaml(text)


@pytest.mark.parametrize("line", ["# x", "      # x", ""])
def test_a_line_that_says_nothing_may_stand_anywhere(line: str) -> None:
    """Once, what stood below a comment below a key was lost."""
    lines = as_kubectl_yaml(*kubectl.many_pods(1)).split("\n")
    for at in range(3, len(lines) - 4):
        hold_to_pyyaml("\n".join([*lines[:at], line, *lines[at:]]))


def hold_to_pyyaml(text: str) -> None:
    try:
        expected = yaml.load(text, Loader=vars(pod_files)["_Loader"])["items"]  # noqa: S506 - a safe one
        assert isinstance(expected, list)
    except (yaml.YAMLError, KeyError, TypeError, AssertionError):
        return  # no YAML, or no list any more: nothing to hold it to
    try:
        found = read(text)
    except PodFileError:
        return
    pods = [pod for pod in expected if isinstance(pod, dict) and pod.get("kind", "Pod") == "Pod"]
    assert [read_pod(pod) for pod in found] == [read_pod(pod) for pod in pods]


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("writer", WRITERS)
def test_it_does_not_matter_how_the_text_comes(
    writer: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_files, "CHUNK", chunk)
    pods = [with_more(raw_pod(f"uid-{number}"), "text\n- x: y\n") for number in range(3)]
    found = read(WRITERS[writer](*pods).replace("\r\n", "\n"))
    assert [read_pod(pod) for pod in found] == [read_pod(pod) for pod in pods]


def test_what_kubectl_prints_is_read_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a large cluster takes a minute."""
    pods = list(kubectl.many_pods(20))
    text = as_kubectl_yaml(*pods)

    parse = yaml.load

    def load(text: str, **more: Any) -> object:  # noqa: ANN401 - PyYAML's arguments
        assert "containers" not in text
        return parse(text, **more)

    monkeypatch.setattr(yaml, "load", load)
    found = read(text)
    assert [read_pod(pod) for pod in found] == [read_pod(pod) for pod in pods]


def test_the_support_writes_yaml_that_says_what_the_pods_say() -> None:
    pods = list(kubectl.many_pods(3))
    assert yaml.safe_load(as_kubectl_yaml(*pods))["items"] == pods
    assert json.loads(as_kubectl_json(*pods))["items"] == pods


def test_what_is_no_pod_is_counted() -> None:
    documents = [as_list(raw_pod(), {"kind": "Deployment"}), {"kind": "Service"}, raw_pod("uid-2")]
    for text in (
        yaml.safe_dump_all(documents),
        "".join(json.dumps(each) for each in documents),
    ):
        file = PodFile(name="pods", stream=io.StringIO(text))
        assert [pod["metadata"]["uid"] for pod in file.read_objects()] == ["uid-1", "uid-2"]
        assert file.others == 2
        assert file.whole


def test_pods_of_a_list_from_the_api_have_no_kind() -> None:
    """`kubectl get --raw /api/v1/pods` prints them like that."""
    bare = {key: value for key, value in raw_pod().items() if key not in {"kind", "apiVersion"}}
    listed = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [bare]}
    assert read(json.dumps(listed)) == [bare]
    assert len(read(yaml.safe_dump(listed))) == 1


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        pytest.param(yaml.safe_dump(raw_pod()), False, id="a pod"),
        pytest.param(json.dumps(raw_pod()), False, id="a pod as JSON"),
        pytest.param(as_kubectl_yaml(raw_pod()), True, id="a list"),
        pytest.param(as_kubectl_json(raw_pod()), True, id="a list as JSON"),
        pytest.param("apiVersion: v1\nitems: []\nkind: List\n", True, id="an empty list"),
        pytest.param('{"items": [], "kind": "List"}', True, id="an empty list as JSON"),
        pytest.param('{"items": null, "kind": "PodList"}', True, id="a list of null"),
        pytest.param("", False, id="nothing"),
        pytest.param("\n# nothing\n---\n", False, id="a comment"),
    ],
)
def test_only_a_list_tells_what_is_not_there(text: str, whole: bool) -> None:  # noqa: FBT001 - a table's
    file = PodFile(name="pods", stream=io.StringIO(text))
    list(file.read_objects())
    assert file.whole is whole


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"items": [{"kind": "Pod"', id="cut JSON"),
        pytest.param('{"items": [1 2]}', id="no comma"),
        pytest.param('{"a": 1,}', id="a comma too much"),
        pytest.param('{"kind": "Pod"} rest', id="text behind JSON"),
        pytest.param("{" * 100_000, id="braces"),
        pytest.param('{"a":' * 100_000, id="nested JSON"),
        pytest.param("[" * 100_000, id="brackets"),
        pytest.param("items:\n- kind: Pod\n  metadata: {\n", id="cut YAML"),
        pytest.param("items:\n- kind: 'Pod\n- x'\n", id="a text that leaves its element"),
        pytest.param("items:\n- kind: Pod\n\tmetadata: x\n- kind: Pod\n", id="a tab"),
        pytest.param("items:\n- kind: Pod\nrubbish\n- kind: Pod\n", id="rubbish in the list"),
        pytest.param(
            "items:\n- kind: Pod\nWarning: x y\n- kind: Pod\n", id="words between elements"
        ),
        pytest.param(
            "items:\n  - kind: Pod\nWarning: x y\n  - kind: Pod\n", id="words between deeper ones"
        ),
        pytest.param("items:\n- kind: Pod\n foo: bar\n- kind: Pod\n", id="a key between elements"),
        pytest.param("items:\n- kind: Pod\nitems:\n- kind: Pod\n", id="two lists in one"),
        pytest.param("  kind: Pod\nfoo: bar\n", id="a key left of the first"),
        pytest.param("kind: *nowhere\n", id="an alias of nothing"),
        pytest.param("kind: !!python/object:os.system x\n", id="a tag"),
        pytest.param("kind: Pod\nmetadata: {creationTimestamp: 2024-99-99T00:00:00Z, x: 0o9: }\n"),
        pytest.param("kind: \x00\n", id="NUL"),
        pytest.param('{"items": [{"kind": "Pod", "n": ' + "1" * 5000 + "}]}", id="a long number"),
        pytest.param("kind: " + "1" * 5000 + "\n", id="a long number in YAML"),
    ],
)
def test_what_can_t_be_read_is_told_in_a_line(text: str) -> None:
    with pytest.raises(PodFileError, match=r"^pods ") as caught:
        read(text)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 400


def test_bytes_that_are_no_text_are_told() -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"kind: Pod\nname: \xff\xfe\n"), encoding="utf-8")
    with pytest.raises(PodFileError, match="not UTF-8"):
        list(PodFile(name="pods", stream=stream).read_objects())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("kind: Pod\nmetadata:\n  name: a\nextra:\n- kind: Foo\n", id="a pod"),
        pytest.param("kind: Foo\nmetadata:\n  name: a\ntargets:\n- kind: Pod\n", id="none"),
        pytest.param("items:\n- # nothing\n- kind: Pod\nkind: List\n", id="an element of nothing"),
    ],
)
def test_what_looks_like_another_key_is_none(text: str) -> None:
    """Once, an element at the first column was taken for a key of the pod."""
    expected = yaml.safe_load(text)
    objects = expected.get("items", [expected])
    pods = [each for each in objects if each is not None and each["kind"] == "Pod"]
    assert len(read(text)) == len(pods)


def test_an_anchor_is_followed() -> None:
    text = yaml.safe_dump(as_list(raw_pod())).replace("kind: Pod", "kind: &kind Pod")
    assert [read_pod(pod) for pod in read(text)] == [read_pod(raw_pod())]


def test_a_time_without_quotes_is_a_text() -> None:
    text = yaml.safe_dump(raw_pod()).replace("'2024-01-15T10:30:00Z'", "2024-01-15T10:30:00Z")
    assert [read_pod(pod) for pod in read(text)] == [read_pod(raw_pod())]


@given(text=st.text(max_size=200) | st.text("- :\n'\"{}[]items#&*|>kdPo", max_size=80))
def test_any_text_is_pods_or_an_error(text: str) -> None:
    try:
        found = read(text)
    except PodFileError:
        return
    for pod in found:
        read_pod(pod)

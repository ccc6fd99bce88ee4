"""The lines on stdout, which people parse, and diagnostics on stderr."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import digest, record
from tracker import logs
from tracker.logs import Lines
from tracker.records import Record, Status

NOON = datetime(2024, 1, 15, 12, 30, tzinfo=timezone(timedelta(hours=2)))
HOSTILE = "a\n[2024-01-15T10:30:00Z] OK CREATED name=x\r\x1b[31m\u202e\u2028\x00\ud800"


def lines(*, as_json: bool = False) -> tuple[Lines, io.StringIO]:
    stream = io.StringIO()
    return Lines(stream=stream, now=lambda: NOON, as_json=as_json), stream


def test_an_acknowledged_record_has_its_line() -> None:
    told, stream = lines()
    told.acknowledged(record())
    told.acknowledged(record().decommissioned())
    assert stream.getvalue().splitlines() == [
        (
            "[2024-01-15T10:30:00Z] OK CREATED name=ghcr.io/acme/app deployment_name=shop/web/app "
            f"digest={digest()} status=deployed"
        ),
        (
            "[2024-01-15T10:30:00Z] OK DELETED name=ghcr.io/acme/app deployment_name=shop/web/app "
            f"digest={digest()} status=decommissioned"
        ),
    ]


def test_a_failure_has_its_line_and_the_error_runs_to_its_end() -> None:
    told, stream = lines()
    told.failed(record(), "connection refused")
    told.failed(record().decommissioned(), 'HTTP 422 "name" is too long')
    assert stream.getvalue().splitlines() == [
        (
            "[2024-01-15T10:30:00Z] FAILED CREATED name=ghcr.io/acme/app "
            "deployment_name=shop/web/app error=connection refused"
        ),
        (
            "[2024-01-15T10:30:00Z] FAILED DELETED name=ghcr.io/acme/app "
            'deployment_name=shop/web/app error=HTTP 422 "name" is too long'
        ),
    ]


def test_a_line_as_json_has_the_same_facts() -> None:
    told, stream = lines(as_json=True)
    told.acknowledged(record())
    told.failed(record(), "timeout")
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {
            "time": "2024-01-15T10:30:00Z",
            "outcome": "OK",
            "action": "CREATED",
            "name": "ghcr.io/acme/app",
            "deployment_name": "shop/web/app",
            "digest": digest(),
            "status": "deployed",
        },
        {
            "time": "2024-01-15T10:30:00Z",
            "outcome": "FAILED",
            "action": "CREATED",
            "name": "ghcr.io/acme/app",
            "deployment_name": "shop/web/app",
            "error": "timeout",
        },
    ]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("plain", "plain"),
        ("ümlaut/日本", "ümlaut/日本"),
        ("two words", '"two words"'),
        ('"quoted"', '"\\"quoted\\""'),
        ("it's", '"it\'s"'),
        ("back\\slash", '"back\\\\slash"'),
        ("no\nbreak", '"no\\nbreak"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("\u202egnp", '"\\u202egnp"'),
        ("nb\u00a0sp", '"nb\\u00a0sp"'),
        ("\ud800", '"\\ud800"'),
        ("", '""'),
    ],
)
def test_a_value_that_is_not_one_plain_word_is_quoted(name: str, word: str) -> None:
    told, stream = lines()
    told.acknowledged(record(name=name))
    assert f" deployment_name={word} digest=" in stream.getvalue()


@given(name=st.text(st.characters()), reason=st.text(st.characters()), as_json=st.booleans())
def test_no_text_can_forge_a_line(name: str, reason: str, *, as_json: bool) -> None:
    told, stream = lines(as_json=as_json)
    made = Record(
        deployment_name=name, name=name, version=None, digest=digest(), status=Status.DEPLOYED
    )
    told.acknowledged(made)
    told.failed(made, reason)
    told.failed(made, HOSTILE)
    written = stream.getvalue()
    assert len(written.splitlines()) == 3
    assert written.replace("\n", "").isprintable()
    written.encode()
    if as_json:
        found = [json.loads(line) for line in written.splitlines()]
        assert [each["deployment_name"] for each in found] == [name] * 3
    else:
        assert [line.split(" ", 2)[1] for line in written.splitlines()] == [
            "OK",
            "FAILED",
            "FAILED",
        ]


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("kopf", "aiohttp", "asyncio")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("as_json", [False, True])
def test_diagnostics_of_ours_and_of_libraries_are_one_line_each(*, as_json: bool) -> None:
    stream = io.StringIO()
    logs.configure(level="info", as_json=as_json, stream=stream)
    structlog.get_logger("tracker.test").warning("put off", deployment_name=HOSTILE, seconds=1.5)
    logging.getLogger("some.library").warning("it says %s", HOSTILE)
    logging.getLogger("some.library").info("plainly")
    written = stream.getvalue()
    assert len(written.splitlines()) == 3
    assert written.replace("\n", "").isprintable()
    assert "put off" in written
    if as_json:
        found = [json.loads(line) for line in written.splitlines()]
        assert [each["level"] for each in found] == ["warning", "warning", "info"]
        assert found[0]["seconds"] == 1.5


@pytest.mark.usefixtures("_logging_as_it_was")
def test_an_error_brings_its_traceback() -> None:
    stream = io.StringIO()
    logs.configure(level="warning", as_json=True, stream=stream)
    try:
        dict[str, str]().pop("missing")
    except KeyError:
        structlog.get_logger("tracker.test").exception("name failed", deployment_name="x")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'missing'" in json.loads(line)["exception"]


@pytest.mark.fault("G22")
@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "user", ["me:canary@", "canary@", "me:c@nary@", "me:'canary\"@", "me:canary\n@", "m%65:canary@"]
)
def test_no_address_is_told_with_its_password(user: str, *, as_json: bool) -> None:
    """An error of a library may hold one, whatever we do to give it none."""
    stream = io.StringIO()
    logs.configure(level="info", as_json=as_json, stream=stream)
    url = f"HTTPS://{user}proxy.example.com:3128/x@y"
    ours, theirs = structlog.get_logger("tracker.test"), logging.getLogger("some.library")
    ours.warning(f"no way through {url}", reason=f"url='{url}', https://ghcr.io/app@sha256:0")
    theirs.error("no way through %s", url)
    try:
        dict[str, str]().pop(url)
    except KeyError:
        ours.exception("name failed")
        theirs.exception("it has failed")
    told = stream.getvalue()
    assert "nary" not in told
    assert told.count("HTTPS://proxy.example.com:3128/x@y") == 5
    assert "https://ghcr.io/app@sha256:0" in told
    if as_json:
        assert len([json.loads(line) for line in told.splitlines()]) == 4


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("logger", [structlog.get_logger("tracker.test"), logging.getLogger("x")])
@pytest.mark.parametrize("as_json", [False, True])
def test_no_error_s_text_can_forge_a_line(logger: logging.Logger, *, as_json: bool) -> None:
    """What an event says was escaped, and the traceback below it was not."""
    stream = io.StringIO()
    logs.configure(level="warning", as_json=as_json, stream=stream)
    try:
        try:
            dict[str, str]().pop(HOSTILE)
        except KeyError as error:
            raise ValueError(HOSTILE) from error
    except ValueError:
        logger.exception("name failed")
    written = stream.getvalue()
    assert written.replace("\n", "").isprintable()
    written.encode()
    assert "Traceback (most recent call last):" in written
    first, *rest = written.removesuffix("\n").split("\n")
    assert "name failed" in first
    assert all(line.startswith("  ") or not line for line in rest)


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", {"ours debug", "ours info", "ours error", "kopf info", "kopf warning"}),
        ("info", {"ours info", "ours error", "kopf warning"}),
        ("error", {"ours error"}),
    ],
)
def test_a_level_is_for_all_and_kopf_is_quieter(level: str, heard: set[str]) -> None:
    stream = io.StringIO()
    logs.configure(level=level, as_json=True, stream=stream)
    ours, kopf = structlog.get_logger("tracker.test"), logging.getLogger("kopf.objects")
    for say in (ours.debug, ours.info, ours.error):
        say(f"ours {say.__name__}")
    kopf.info("kopf info")
    kopf.warning("kopf warning")
    assert {json.loads(line)["event"] for line in stream.getvalue().splitlines()} == heard


@pytest.mark.usefixtures("_logging_as_it_was")
def test_libraries_can_be_left_as_they_are() -> None:
    before = logging.getLogger().handlers[:]
    stream = SimpleNamespace(write=lambda _text: None, flush=lambda: None, isatty=lambda: False)
    logs.configure(level="info", as_json=False, libraries=False, stream=stream)  # type: ignore[arg-type] # all it needs
    assert logging.getLogger().handlers == before


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize(
    ("level", "logger", "traceback"),
    [
        pytest.param("info", "kopf._core.reactor.running", False, id="inside-kopf"),
        pytest.param("info", "kopf.objects", True, id="in-a-handler"),
        pytest.param("debug", "kopf._core.reactor.running", True, id="wanted"),
    ],
)
def test_what_ends_kopf_is_told_in_one_line(level: str, logger: str, *, traceback: bool) -> None:
    """It ends on much that passes, and would tell each time where in Kopf that was."""
    stream = io.StringIO()
    logs.configure(level=level, as_json=False, stream=stream)
    try:
        dict[str, str]().pop("missing")
    except KeyError:
        logging.getLogger(logger).exception("it has failed")
    assert "it has failed" in stream.getvalue()
    assert ("Traceback" in stream.getvalue()) is traceback


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_has_lines_of_its_own(*, as_json: bool) -> None:
    stream = io.StringIO()
    told = Lines(stream=stream, now=lambda: NOON, as_json=as_json, dry_run=True)
    told.acknowledged(record())
    told.acknowledged(record().decommissioned())
    facts = f"name=ghcr.io/acme/app deployment_name=shop/web/app digest={digest()}"
    if as_json:
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [(line["outcome"], line["action"], line["status"]) for line in lines] == [
            ("WOULD", "POST", "deployed"),
            ("WOULD", "POST", "decommissioned"),
        ]
    else:
        assert stream.getvalue().splitlines() == [
            f"[2024-01-15T10:30:00Z] WOULD POST {facts} status=deployed",
            f"[2024-01-15T10:30:00Z] WOULD POST {facts} status=decommissioned",
        ]

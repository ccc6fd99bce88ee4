"""What can be wrong: each message leads to its advice, and each advice to its place in the docs."""

import difflib
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from tests.support.builders import record
from tests.support.messages import COMMAND, MESSAGES, messages, rendered
from tests.support.program import ROOT, Program, tracker_run
from tracker import logs
from tracker.advice import ADVICE, PAGE, Advice, Trouble, advice_on, see, trouble_of

DOCUMENT = (ROOT / PAGE).read_text(encoding="utf-8")
HEADINGS = re.findall(r"^## (.*)$", DOCUMENT, flags=re.MULTILINE)


def test_the_page_has_a_heading_for_each_trouble_and_no_other() -> None:
    assert [trouble.value for trouble in Trouble] == HEADINGS
    # As GitHub makes an anchor of a heading: small letters and hyphens stay as they are.
    assert all(re.fullmatch(r"[a-z0-9-]+", heading) for heading in HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_each_section_says_what_is_seen_why_and_what_to_do(heading: str) -> None:
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\*\*(.*?)\*\*", section, flags=re.MULTILINE) == [
        "You see",
        "Why",
        "What to do",
    ]


def test_each_link_within_the_page_leads_somewhere() -> None:
    linked = re.findall(r"\]\(#([^)]*)\)", DOCUMENT)
    assert linked
    assert set(linked) <= set(HEADINGS)


@pytest.mark.parametrize("trouble", Trouble)
def test_each_trouble_has_its_advice_in_sentences(trouble: Trouble) -> None:
    advice = ADVICE[trouble]
    assert not advice.what.endswith(".")
    assert advice.why.endswith(".")
    assert advice.next_step.endswith(".")
    assert see(trouble) == f"docs/troubleshooting.md#{trouble.value}"


async def test_the_messages_are_as_they_are_written_down(tmp_path: Path) -> None:
    """Each is made by the part that makes it, over sockets and files, with its advice."""
    told = rendered(await messages(tmp_path)).splitlines()
    written = MESSAGES.read_text(encoding="utf-8").splitlines()
    difference = "\n".join(difflib.unified_diff(written, told, lineterm=""))
    assert not difference, f"{difference}\nrun {COMMAND} if that is what they should be"


@pytest.mark.parametrize(
    ("module", "phrase", "trouble"),
    [
        ("app", "a name is shared", Trouble.NAME_SHARED),
        ("app", "the ledger was kept for another cluster", Trouble.LEDGER_CLUSTER),
        ("app", "the ledger holds records of another", Trouble.LEDGER_IDENTITY),
        ("app", "the ledger is in memory", Trouble.LEDGER_MEMORY),
        ("auth", "the token file can't be read", Trouble.TOKEN),
        ("auth", "the clock is off", Trouble.CLOCK),
        ("auth", "the App's token could not be renewed early", Trouble.GITHUB_APP),
        ("delivery", "answers to batches can't be read", Trouble.UNEXPECTED_ANSWER),
        ("ledger_file", "the ledger was corrupt", Trouble.LEDGER_CORRUPT),
        ("ledger", "the ledger broke or went", Trouble.LEDGER_ANEW),
        ("ledger", "the ledger has rows that can't be read", Trouble.LEDGER_CORRUPT),
        ("lookups", "workloads can't be read", Trouble.WORKLOADS),
    ],
)
def test_what_is_said_in_mid_run_is_known_too(module: str, phrase: str, trouble: Trouble) -> None:
    source = (ROOT / "tracker" / f"{module}.py").read_text(encoding="utf-8")
    joined = re.sub(r'"\s+f?"', "", source)  # a text over several lines is one text
    said = [text for text in re.findall(r'"([^"\n]+)"', joined) if text.startswith(phrase)]
    assert said, f"{module} does not say so"
    assert {trouble_of(text) for text in said} == {trouble}


@pytest.mark.parametrize(
    ("reason", "trouble"),
    [
        ("no token for the App: HTTP 401; check GH_APP_ID", Trouble.GITHUB_APP),
        ("no token for the App: HTTP 404; check GH_APP_ID", Trouble.GITHUB_APP),
        ("no token for the App: HTTP 403, a limit", Trouble.HTTP_429),
        ("no token for the App: HTTP 502", Trouble.HTTP_5XX),
        ("no token for the App: connection refused", Trouble.CONNECTION),
        ("no token for the App: host name not found: github.invalid", Trouble.DNS),
        ("no token for the App: TLS certificate refused: certificate has expired", Trouble.TLS),
        ("timeout", Trouble.CONNECTION),
        ("connection reset by peer", Trouble.CONNECTION),
        ("no route to host", Trouble.CONNECTION),
        ("network is unreachable", Trouble.CONNECTION),
        ("HTTP 200 without the record", Trouble.UNEXPECTED_ANSWER),
        ("HTTP 207 without a readable list of records", Trouble.UNEXPECTED_ANSWER),
        ("HTTP 403 Forbidden", Trouble.HTTP_403),
        ("HTTP 403 Uploads are limited to members: the token lacks a permission", Trouble.HTTP_403),
        ("the API server refused to tell of deployments: 403 forbidden", Trouble.WORKLOADS),
        ("the API server refused to tell of its version: 401", Trouble.API_SERVER_401),
        ("the API server refused to tell of pods: 503 unavailable", Trouble.API_SERVER),
        ("what answered for the API server is not one", Trouble.API_SERVER),
        ("a certificate for the API server can't be read: no such file", Trouble.KUBECONFIG),
        ("the ledger /my data/l.db could not be written (disk full)", Trouble.LEDGER_WRITE),
        ("the ledger /l.db is corrupt (quick_check: row 1)", Trouble.LEDGER_CORRUPT),
        ("the ledger /l.db can't have a write-ahead log there", Trouble.LEDGER_PLACE),
    ],
)
def test_a_reason_leads_to_its_trouble(reason: str, trouble: Trouble) -> None:
    assert trouble_of(reason) is trouble
    assert advice_on(reason) is ADVICE[trouble]


@pytest.mark.parametrize(
    "text", ["", "starting", "ORGANISED", "it said HTTP 404", "sending paused", "not recorded"]
)
def test_other_text_leads_nowhere(text: str) -> None:
    assert trouble_of(text) is None
    assert advice_on(text) is None


# Where it is told.


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    """Give what diagnostics go to."""
    stream = io.StringIO()
    logs.configure(level="info", as_json=True, libraries=False, stream=stream)
    yield stream
    structlog.reset_defaults()


def test_a_failure_is_advised_on_once_for_each_trouble(stderr: io.StringIO) -> None:
    stdout = io.StringIO()
    lines = logs.Lines(stream=stdout, now=_never, as_json=False)
    for name, reason in (
        ("shop/a/app", "HTTP 404 Not Found: GitHub knows no artifact of this digest"),
        ("shop/b/app", "HTTP 404 Not Found: GitHub knows no artifact of this digest"),
        ("shop/c/app", "connection refused"),
        ("shop/c/app", "something new"),
    ):
        lines.failed(record(name=name), reason)
    first = stdout.getvalue().splitlines()[0]
    assert first.endswith(" error=HTTP 404 Not Found: GitHub knows no artifact of this digest")
    told = [json.loads(line) for line in stderr.getvalue().splitlines()]
    assert [(each["event"], each["see"]) for each in told] == [
        (ADVICE[trouble].what, see(trouble)) for trouble in (Trouble.HTTP_404, Trouble.CONNECTION)
    ]
    assert told[0]["deployment_name"] == "shop/a/app"
    advice = Advice(what=told[0]["event"], why=told[0]["why"], next_step=told[0]["next"])
    assert advice == ADVICE[Trouble.HTTP_404]


def test_a_diagnostic_names_its_place(stderr: io.StringIO) -> None:
    log = structlog.get_logger()
    log.warning("sending paused", reason="HTTP 401 Bad credentials")
    log.info("the ledger is in memory: a restart posts what runs once more")
    log.info("starting", reason="HTTP 401 Bad credentials")
    log.warning("the watch is started again", reason="RuntimeError")
    told = [json.loads(line).get("see") for line in stderr.getvalue().splitlines()]
    assert told == [see(Trouble.HTTP_401), see(Trouble.LEDGER_MEMORY), None, None]


def _never() -> datetime:
    return datetime(2024, 1, 15, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        pytest.param(
            {"ORG": "a b", "WORKERS": "0"},
            [
                (
                    'deployment-tracker: ORG="a b": not a GitHub organisation\'s name (letters,'
                    " digits and single hyphens between them); for example ORG=acme"
                    " (docs/troubleshooting.md#org)"
                ),
                (
                    'deployment-tracker: WORKERS="0": the least is 1; for example WORKERS=2'
                    " (docs/troubleshooting.md#settings)"
                ),
            ],
            id="settings",
        ),
        pytest.param(
            {"ORG": "acme", "KUBECONFIG": "/nowhere/config"},
            [
                (
                    "deployment-tracker: no credentials for the API server in /nowhere/config:"
                    " /nowhere/config does not exist; name a kubeconfig with -kubeconfig or"
                    " KUBECONFIG (docs/troubleshooting.md#kubeconfig)"
                ),
            ],
            id="kubeconfig",
        ),
    ],
)
async def test_a_start_that_fails_names_the_place_of_each_mistake(
    tmp_path: Path, environ: dict[str, str], told: list[str]
) -> None:
    async with Program(tracker_run(), environ=environ, folder=tmp_path) as program:
        assert await program.ended() == 2
        assert program.stderr == told

"""
What the program says: records on stdout, diagnostics on stderr.

stdout carries one line per acknowledged record and one per new reason of failure, in a format
that is an interface (people grep it and parse it). stderr carries everything else, through
structlog, the logs of libraries included. Much of what is told was chosen by the author of a pod
or by a server, so whatever is not printable is escaped: a value can't forge a line. Of a traceback
each line is escaped for itself, and indented. No address is told with a password, whosever error it
stands in, its traceback included.

What a diagnostic is about stands in docs/troubleshooting.md: `see` names the place. A record's line
stays short; why it failed and what to do is told on stderr, once for each trouble.
"""

import json
import logging
import sys
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import TextIO

import structlog

from tracker.advice import ADVICE, Trouble, see, trouble_of
from tracker.answers import clean_text, without_user_info
from tracker.records import Record, Status

__all__ = ["Lines", "configure"]

MAX_ERROR = 512
"""Characters of a failure's reason in a line."""
_TROUBLED = frozenset({"warning", "error", "exception", "critical"})
_ACTIONS = {Status.DEPLOYED: "CREATED", Status.DECOMMISSIONED: "DELETED"}

_log = structlog.get_logger(__name__)


class Lines:
    """
    The lines on stdout.

    `now()` returns the time as an aware datetime. With `as_json` each line is a JSON object of
    the same facts. In a dry run nothing is acknowledged: what would be posted is told as that.
    """

    def __init__(
        self,
        *,
        stream: TextIO,
        now: Callable[[], datetime],
        as_json: bool,
        dry_run: bool = False,
    ) -> None:
        self._stream = stream
        self._now = now
        self._as_json = as_json
        self._told: set[Trouble] = set()
        self._dry_run = dry_run

    def acknowledged(self, record: Record) -> None:
        """Tell that GitHub acknowledged a record."""
        facts = {
            "name": record.name,
            "deployment_name": record.deployment_name,
            "digest": record.digest,
            "status": record.status.value,
        }
        outcome, action = ("WOULD", "POST") if self._dry_run else ("OK", _ACTIONS[record.status])
        self._write(outcome, action, facts)

    def failed(self, record: Record, reason: str) -> None:
        """Tell that a record failed, and on stderr what to do, once for each trouble."""
        facts = {
            "name": record.name,
            "deployment_name": record.deployment_name,
            "error": clean_text(reason, MAX_ERROR),
        }
        self._write("FAILED", _ACTIONS[record.status], facts)
        trouble = trouble_of(reason)
        if trouble is not None and trouble not in self._told:
            self._told.add(trouble)
            advice = ADVICE[trouble]
            _log.warning(
                advice.what,
                deployment_name=record.deployment_name,
                reason=facts["error"],
                why=advice.why,
                next=advice.next_step,
            )

    def _write(self, outcome: str, action: str, facts: dict[str, str]) -> None:
        time = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._as_json:
            line = json.dumps({"time": time, "outcome": outcome, "action": action, **facts})
        else:
            # The error is the last and runs to the line's end; the others are one word each.
            words = [
                f"{key}={value if key == 'error' else _word(value)}" for key, value in facts.items()
            ]
            line = f"[{time}] {outcome} {action} {' '.join(words)}"
        self._stream.write(line + "\n")
        self._stream.flush()


def configure(
    *, level: str, as_json: bool, libraries: bool = True, stream: TextIO | None = None
) -> None:
    """
    Set up diagnostics: structlog's and, with `libraries`, the standard library's, on stderr.

    `level` is a level's name in lower case. But for `debug`, Kopf is heard from WARNING on: it
    tells each handler's success, which is what stdout is for.
    """
    stream = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_the_place,
        _each_text(_escaped),
        structlog.processors.format_exc_info,
        # An error of a library may hold them.
        _each_text(without_user_info),
    ]
    renderer: structlog.typing.Processor
    if as_json:
        renderer = structlog.processors.JSONRenderer()
    else:
        shared.append(_indent_traceback)
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,
        )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    if not libraries:
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    if threshold > logging.DEBUG:
        handler.addFilter(_without_inner_traceback)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in ("kopf", "aiohttp", "asyncio"):
        floor = logging.DEBUG if threshold <= logging.DEBUG else logging.WARNING
        logging.getLogger(name).setLevel(max(threshold, floor))


def _word(value: str) -> str:
    """Return a value as one word: as it is, or as a JSON string where that is not one."""
    if value.isprintable() and not set(value) & set(" \"'\\") and value:
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _without_inner_traceback(record: logging.LogRecord) -> bool:
    """
    Leave Kopf's inner parts their line and not their traceback, which tells where in Kopf they are.

    They end on much that passes, and the watch says that it is started again. What goes wrong in
    a handler is ours, and comes from `kopf.objects` with its traceback.
    """
    if record.name.startswith("kopf._"):
        record.exc_info = record.exc_text = None
    return True


def _name_the_place(
    _logger: object, method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    """Add where it is written about, if it is: what is said itself, or its reason."""
    said = [event.get("event"), *([event.get("reason")] if method in _TROUBLED else [])]
    found = (trouble_of(text) for text in said if isinstance(text, str))
    trouble = next((each for each in found if each is not None), None)
    if trouble is not None:
        event["see"] = see(trouble)
    return event


def _each_text(change: Callable[[str], str]) -> structlog.typing.Processor:
    """Return a processor that changes each text of an event."""

    def process(
        _logger: object, _method: str, event: MutableMapping[str, object]
    ) -> MutableMapping[str, object]:
        for key, value in event.items():
            if isinstance(value, str):
                event[key] = change(value)
        return event

    return process


def _escaped(text: str) -> str:
    """Escape what is not printable in a text."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _indent_traceback(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    """
    Indent each line of a traceback and escape what is not printable in it.

    An error's own text may have line breaks as the traceback has, and can't be told from it then.
    Indented, no line of it passes for a diagnostic of its own.
    """
    text = event.get("exception")
    if isinstance(text, str):
        lines = text.strip("\n").split("\n")
        event["exception"] = "\n".join(f"  {_escaped(line)}".rstrip(" ") for line in lines)
    return event

"""
The messages about what is wrong, each made by the part that makes it, with its advice.

`tests/data/messages.txt` is what they are; `python -m tests.support.messages` writes it anew. What
differs from run to run (ports, folders) is replaced by a word.
"""

import asyncio
import fcntl
import re
import sqlite3
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from tests.support.builders import record
from tests.support.certificates import certificate
from tests.support.ledgers import IDENTITY
from tests.support.program import ROOT
from tracker.advice import ADVICE, Trouble, see, trouble_of
from tracker.answers import Failed, Reply, classify, classify_batch
from tracker.auth import TokenFile, read_key
from tracker.cluster import Cluster
from tracker.errors import TrackerError
from tracker.ledger import SqliteLedger
from tracker.ledger_schema import VERSION
from tracker.sandbox.cluster import SimulatedCluster
from tracker.settings import Settings, SettingsError, load
from tracker.transport import Transport, proxy_of

__all__ = ["MESSAGES", "messages", "rendered"]

MESSAGES: Final = ROOT / "tests" / "data" / "messages.txt"
COMMAND: Final = "python -m tests.support.messages"
_GOOD: Final = {"ORG": "acme", "LOGICAL_ENVIRONMENT": "test", "API_TOKEN": "canary"}


async def messages(folder: Path) -> list[str]:
    """Return the messages, by the parts that make them; `folder` is empty."""
    found = [*_of_answers(), *_of_settings(), *_of_credentials(folder)]
    found += [text async for text in _of_the_way(folder)]
    found += [text async for text in _of_the_cluster(folder)]
    found += [text async for text in _of_the_ledger(folder)]
    return [_placed(text, folder) for text in found]


def rendered(found: list[str]) -> str:
    """Return the messages with the advice on each, as the file has them."""
    parts = []
    for text in found:
        trouble = trouble_of(text) or Trouble.SETTINGS
        advice = ADVICE[trouble]
        parts.append(
            f"{text}\n  what: {advice.what}\n  why:  {advice.why}\n  next: {advice.next_step}\n"
            f"  see:  {see(trouble)}\n"
        )
    return "\n".join(parts)


def _placed(text: str, folder: Path) -> str:
    text = re.sub(r"Cannot connect to host .*", "(what aiohttp says)", text)
    return text.replace(str(folder), "FOLDER")


def _of_answers() -> Iterator[str]:
    one = record()
    for status, message, headers in (
        (401, "Bad credentials", {}),
        (403, "Resource not accessible by personal access token", {}),
        (404, "Not Found", {}),
        (422, "Invalid request.\n\n'logical_environment' is too short.", {}),
        (400, "Problems parsing JSON", {}),
        (429, "", {"retry-after": "60"}),
        (403, "You have exceeded a secondary rate limit.", {}),
        (403, "", {"x-ratelimit-remaining": "0"}),
        (502, "", {}),
        (408, "", {}),
        (302, "", {}),
        (202, "", {}),
    ):
        body = f'{{"message": "{message}"}}'.replace("\n", "\\n").encode() if message else b""
        answer = classify(Reply(status=status, headers=headers, body=body, whole=True), one)
        yield getattr(answer, "reason", "")
    for cause in ("unauthorized", "not_found", "invalid"):
        deployment = f'{{"deployment_name": "{one.deployment_name}", "digest": "{one.digest}"}}'
        error = f'{{"cause": "{cause}", "deployment": {deployment}}}'
        body = f'{{"deployment_records": [], "errors": [{error}]}}'.encode()
        told = classify_batch(Reply(status=207, headers={}, body=body, whole=True), [one])
        yield from (getattr(each, "reason", "") for each in getattr(told, "answers", ()))


def _of_settings() -> Iterator[str]:
    wrong: tuple[Mapping[str, str], ...] = (
        {"ORG": ""},
        {"ORG": "https://github.com/acme"},
        {"BASE_URL": "http://github.example.com"},
        {"BASE_URL": "https://github.example.com/api/v3"},
        {"DN_TEMPLATE": "{{namespace}}/{{pod}}"},
        {"DN_TEMPLATE": "fixed"},
        {"WORKERS": "many"},
        {"API_TOKEN_FILE": "/token"},
        {"API_TOKEN": "", "GH_APP_ID": "1"},
    )
    for environ in wrong:
        try:
            load({}, {**_GOOD, **environ})
        except SettingsError as error:
            yield from error.mistakes
    yield from Settings.model_validate(
        {"org": "acme", "dn_template": "{{containerName}}"}
    ).warnings()


def _of_credentials(folder: Path) -> Iterator[str]:
    empty = folder / "empty"
    empty.touch()
    yield from _told(lambda: TokenFile(folder / "missing"))
    yield from _told(lambda: TokenFile(empty))
    yield from _told(lambda: read_key("not a key"))
    yield from _told(lambda: proxy_of("https://api.github.com", {"HTTPS_PROXY": "socks5://proxy"}))


def _told(action: Callable[[], object]) -> Iterator[str]:
    try:
        action()
    except TrackerError as error:
        yield str(error)


async def _of_the_way(folder: Path) -> AsyncIterator[str]:
    yield await _asked("http://127.0.0.1:1")
    yield await _asked("https://nowhere.invalid")
    for days, host in ((-1, "127.0.0.1"), (1, "example.com"), (1, "127.0.0.1")):
        pem, key = certificate(folder, days=days, host=host)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(pem, key)
        trusted = None if (days, host) == (1, "127.0.0.1") else pem
        async with _serving(b"", tls=tls) as port:
            yield await _asked(f"https://127.0.0.1:{port}", ca_file=trusted)
    for said in (b"", b"SSH-2.0-hello\r\n"):
        async with _serving(said) as port:
            yield await _asked(f"http://127.0.0.1:{port}")
    async with _serving(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as port:
        proxy = SecretStr(f"http://127.0.0.1:{port}")
        yield await _asked("https://api.github.com", proxy=proxy)
    try:
        async with Transport(
            base_url="https://api.github.com", user_agent="test", ca_file=folder / "no.pem"
        ):
            pass
    except TrackerError as error:
        yield str(error)


async def _asked(url: str, *, ca_file: Path | None = None, proxy: SecretStr | None = None) -> str:
    async with Transport(
        base_url=url, user_agent="test", ca_file=ca_file, proxy=proxy
    ) as transport:
        reply = await transport.get("/", token=SecretStr(""), max_answer=1)
    return reply.reason if isinstance(reply, Failed) else f"HTTP {reply.status}"


@asynccontextmanager
async def _serving(said: bytes, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve TCP: read a request's head, say that, close; yield the port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def _of_the_cluster(folder: Path) -> AsyncIterator[str]:
    async def listed(kubeconfig: Path) -> str:
        async with Cluster(
            kubeconfig=kubeconfig, environ={}, namespace="", user_agent="test"
        ) as cluster:
            try:
                await cluster.list_pods()
            except TrackerError as error:
                return str(error)
        return ""

    yield await listed(folder / "no-kubeconfig")
    kubeconfig = folder / "kubeconfig"
    async with SimulatedCluster(token="right") as server:  # noqa: S106 - the sandbox's
        server.write_kubeconfig(kubeconfig)
        server.forbidden.add(("list", "pods"))
        yield await listed(kubeconfig)
        server.token = "another"  # noqa: S105 - the sandbox's
        yield await listed(kubeconfig)
        await server.pause()
        yield await listed(kubeconfig)


async def _of_the_ledger(folder: Path) -> AsyncIterator[str]:
    async def opened(path: Path) -> str:
        try:
            async with SqliteLedger(path=path, identity=IDENTITY, patience_seconds=0.0):
                return ""
        except TrackerError as error:
            return str(error)

    path = folder / "ledger.db"
    await opened(path)
    with path.with_name("ledger.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield await opened(path)
    _execute(path, f"PRAGMA user_version = {VERSION + 1}")
    yield await opened(path)
    other = folder / "other.db"
    _execute(other, "CREATE TABLE notes (text)")
    yield await opened(other)
    yield await opened(folder / "missing" / "folder" / "ledger.db")


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def main() -> int:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        MESSAGES.parent.mkdir(exist_ok=True)
        MESSAGES.write_text(rendered(asyncio.run(messages(Path(folder)))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

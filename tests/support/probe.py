"""What a kubelet and a Prometheus ask the program at its port for machines."""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tracker.metrics import PREFIX

__all__ = ["Probe", "free_port"]

WITHIN: Final = 40.0


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as held:
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        return port


class Probe:
    """Asks the program's port."""

    def __init__(self) -> None:
        self.port = free_port()

    async def ask(self, path: str) -> tuple[int, str]:
        """Return status and text of an answer."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as response,
        ):
            return response.status, await response.text()

    async def wrong(self, path: str) -> Mapping[str, str]:
        """Return what is wrong, by what was looked at, once there is somebody to ask."""
        status, text = await self.ask(path)
        checks = json.loads(text)["checks"]
        found = {name: finding for name, finding in checks.items() if finding is not None}
        assert status == (503 if found else 200)
        return found

    async def until(self, path: str, condition: Callable[[Mapping[str, str]], bool]) -> None:
        """Wait until what is wrong fulfils a condition; it is asked, since nobody tells."""
        async with asyncio.timeout(WITHIN):
            while True:
                with suppress(aiohttp.ClientConnectionError):
                    if condition(await self.wrong(path)):
                        return
                await asyncio.sleep(0.05)

    async def metrics(self) -> dict[str, float]:
        """Return every sample of ours by its name and labels."""
        _, text = await self.ask("/metrics")
        return {
            sample.name.removeprefix(PREFIX) + "".join(f" {got}" for got in sample.labels.values()):
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }  # fmt: skip

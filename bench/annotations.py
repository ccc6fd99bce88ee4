"""What a pod's annotations cost, hostile ones included: the least of several rounds."""

import json
import timeit
from collections.abc import Mapping
from functools import partial
from typing import Final

from bench.scenarios import Bench, Figures
from tests.support.builders import image, raw_pod
from tracker.annotations import NO_MARKS, PREFIX
from tracker.pods import Pod, read_pod
from tracker.records import Record

__all__ = ["reading"]

ROUNDS: Final = 7
TIMES: Final = 200
TEXT: Final = "\x00\x1b[31m\u202e\n\u2028é"

CASES: Final[Mapping[str, Mapping[str, str]]] = {
    "none": {},
    "five tags": {f"{PREFIX}tag-{number}": "x" for number in range(5)},
    "5,000 of others": {f"example.com/{number:05}": "x" * 50 for number in range(5000)},
    "5,000 of ours": {f"{PREFIX}{number:05}": "x" * 50 for number in range(5000)},
    "5,000 hostile": {f"{PREFIX}{number:05}\u202e": TEXT * 5 for number in range(5000)},
    "one of 256 KiB": {f"{PREFIX}team": "x" * 2**18},
}


async def reading(bench: Bench) -> Figures:
    """Time the reading of one pod from decoded JSON; of this tracker's code, in this process."""
    if not bench.ours:
        return {"ms_a_pod": None}
    figures: Figures = {}
    for title, annotations in CASES.items():
        raw = raw_pod(annotations=annotations)
        took = min(timeit.repeat(partial(read_pod, raw), number=TIMES, repeat=ROUNDS))
        pod = read_pod(raw)
        marks = pod.marks if isinstance(pod, Pod) else NO_MARKS
        record = Record.deployed("shop/web/app", image(), marks)
        figures[f"{title}: ms a pod"] = took / TIMES * 1000
        figures[f"{title}: bytes of the record"] = float(len(json.dumps(record.fields())))
    return figures

"""An interrupted audit's answers, in a file that somebody may have damaged or given for another."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.builders import digest
from tracker.answers import Known, ReadBack
from tracker.commands.audit_file import AuditFile
from tracker.errors import AuditFileError
from tracker.images import Digest

LETTERS = "abcd"


def answer(letter: str) -> Known:
    read = ReadBack(
        deployment_name="shop/wäb/app",
        digest=digest(letter),
        logical_environment="prod",
        physical_environment="",
        cluster="c1",
    )
    return Known(records=(read,), complete=True)


def written(path: Path, letters: str = LETTERS) -> list[bytes]:
    """Leave a file as an interrupted audit does; return its lines."""
    with AuditFile(path, identity="ours") as file:
        for letter in letters:
            file.keep(digest(letter), answer(letter))
    return path.read_bytes().splitlines(keepends=True)


def taken_up(path: Path) -> tuple[dict[Digest, Known], list[str]]:
    """Return which answers an audit takes up, and what it warns of."""
    with capture_logs() as told, AuditFile(path, identity="ours") as file:
        return file.answers, [each["event"] for each in told if each["log_level"] == "warning"]


def test_answers_are_taken_up_as_they_were(tmp_path: Path) -> None:
    written(tmp_path / "f")
    assert taken_up(tmp_path / "f") == ({digest(each): answer(each) for each in LETTERS}, [])


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"\xff", id="not-utf-8"),
        pytest.param(b"}", id="not-json"),
        pytest.param(b"[" * 100_000, id="too-deep"),
    ],
)
def test_what_follows_a_damaged_line_is_asked_for_again(tmp_path: Path, damaged: bytes) -> None:
    """Once, a flipped byte ended this audit and every later one with a traceback."""
    path = tmp_path / "f"
    lines = written(path)
    lines[3] = lines[3][:10] + damaged + lines[3][10:]
    path.write_bytes(b"".join(lines))
    answers, warnings = taken_up(path)
    assert answers.keys() == {digest("a"), digest("b")}
    assert warnings == ["the audit's file is damaged: what follows is asked for again"]
    assert path.read_bytes() == b"".join(lines[:3])
    assert taken_up(path)[1] == []


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"digest": 1, "complete": true, "records": []}', id="digest"),
        pytest.param(b'{"digest": "sha256:a", "complete": 1, "records": []}', id="complete"),
        pytest.param(b'{"digest": "sha256:a", "complete": true, "records": 1}', id="records"),
        pytest.param(b'{"digest": "sha256:a", "complete": true, "records": [["a"]]}', id="short"),
        pytest.param(
            b'{"digest": "sha256:a", "complete": true, "records": [["a", "b", "c", 4]]}', id="text"
        ),
        pytest.param(b"[]", id="list"),
        pytest.param(b"1" * 5000, id="number"),
    ],
)
def test_a_line_that_is_no_answer_is_damage(tmp_path: Path, line: bytes) -> None:
    lines = written(tmp_path / "f", "a")
    (tmp_path / "f").write_bytes(b"".join([*lines, line + b"\n", *lines[1:]]))
    answers, warnings = taken_up(tmp_path / "f")
    assert answers.keys() == {digest("a")}
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b'{"audit": \xff1}', id="not-utf-8"),
        pytest.param(b'{"audit": 1, "identity": "ours", "began": 1' + b"0" * 400 + b"}", id="time"),
        pytest.param(b'{"audit": 1, "identity": "ours", "began": []}', id="no-time"),
        pytest.param(b'{"audit": ', id="not-json"),
    ],
)
def test_a_damaged_head_begins_anew(tmp_path: Path, head: bytes) -> None:
    lines = written(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"".join([head + b"\n", *lines[1:]]))
    answers, warnings = taken_up(tmp_path / "f")
    assert answers == {}
    assert len(warnings) == 1
    assert len((tmp_path / "f").read_bytes().splitlines()) == 1


@pytest.mark.parametrize("left", [5, 60])
def test_a_line_that_a_kill_cut_off_is_no_damage(tmp_path: Path, left: int) -> None:
    lines = written(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    answers, warnings = taken_up(tmp_path / "f")
    assert answers.keys() == {digest(each) for each in "abc"}
    assert warnings == []


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def device(_path: Path) -> Path:
    return Path(os.devnull)


def link(path: Path) -> Path:
    path.symlink_to(path.with_name("somewhere"))
    return path


def socket_file(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


@pytest.mark.parametrize("make", [fifo, folder, device, link, socket_file])
def test_what_is_no_plain_file_is_refused_and_left(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """A pipe was opened for ever or ended in a traceback, and a device would have been removed."""
    path = make(tmp_path / "f")
    with pytest.raises(AuditFileError, match="--resume") as caught, AuditFile(path, identity="o"):
        pass
    assert str(caught.value).startswith(f"{path}: ")
    assert "None" not in str(caught.value)
    assert path.lstat()


@pytest.mark.parametrize("text", [b"mine\n", b"\xff\xfe\x00", b"\x00" * 5000])
def test_what_is_no_audit_s_is_left_as_it_is(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(text)
    with pytest.raises(AuditFileError, match="not the file of an audit"):
        taken_up(path)
    assert path.read_bytes() == text

"""The documents hang together: links lead somewhere, the maps of files and commands are whole."""

import re
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.documents import DOCUMENTS, ROOT, anchors, commands, links, prose


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        place, _, anchor = link.partition("#")
        if ":" in place:
            continue  # nothing is asked of the network
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), link
        if anchor:
            assert target.suffix == ".md", link
            assert anchor in set(anchors(target)), link


def test_anchors_are_github_s(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What it says, and what to do\n## What it says, and what to do\n## `LEDGER_PATH`\n"
        "```sh\n# no heading\n```\n### [A link](x.md) & more\n## -kubeconfig\n## http-404\n"
    )
    assert list(anchors(page)) == [
        "what-it-says-and-what-to-do",
        "what-it-says-and-what-to-do-1",
        "ledger_path",
        "a-link--more",
        "-kubeconfig",
        "http-404",
    ]


def test_the_map_has_every_document() -> None:
    index = ROOT / "docs" / "index.md"
    named = {(index.parent / link).resolve() for link in links(index)}
    assert named == set(DOCUMENTS) - {index}


def test_the_page_on_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Layers\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    named = sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell))
    package = ROOT / "tracker"
    modules = [*package.glob("*.py"), *package.glob("commands/*.py")]
    assert named == sorted(path.stem for path in modules if path.stem != "__init__")


async def test_the_readme_names_every_command() -> None:
    help_page = (await run("-h")).stdout.partition("\nCommands:\n")[2]
    offered = re.findall(r"^  (\w+)  ", help_page, flags=re.MULTILINE)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Commands\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `deployment-tracker ([a-z]+)", section, flags=re.MULTILINE)
    assert sorted(named) == sorted(offered)


def test_shell_is_marked_as_such() -> None:
    """Else what stands in it would not be found, and not be tried."""
    for document in DOCUMENTS:
        marks = re.findall(r"^```(\w+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert not {"bash", "console", "shell", "zsh"} & set(marks), document


def test_commands_are_found_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.documents.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "A `make demo`, a `make`, a `kubectl get\npods`.\n\n"
        "```sh\n# a comment\nkubectl get pods \\\n  -A    # all\njq '{\n  # kept\n}'\n```\n"
        "```\nmake nothing\n```\n\n    pip install it\n    docker: no\n"
    )
    assert [(found.line, found.text) for found in commands(page)] == [
        (6, "kubectl get pods \\\n  -A"),
        (8, "jq '{\n  # kept\n}'"),
        (16, "pip install it"),
        (1, "make demo"),
        (1, "kubectl get pods"),
    ]


def test_prose_keeps_the_numbers_of_lines() -> None:
    assert prose("a\n```sh\nb\n```\nc\n") == "a\n\n\n\nc\n"

"""What holds for every module, however it is written."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "tracker").rglob("*.py"))
EDGE = {
    "tracker/__init__.py",
    "tracker/__main__.py",
    "tracker/commands/__init__.py",
    "tracker/sandbox/__init__.py",
}
"""Modules that nobody imports names from."""
MAY_IMPORT_MAIN = {"tracker/cli.py", "tracker/__main__.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports, wherever in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def bound_by(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds at its top."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
            case ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case _:
                pass


def test_there_are_modules() -> None:
    assert "tracker/delivery.py" in {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_shadows_one_of_the_standard_library(path: Path) -> None:
    """`kopf run tracker/main.py` puts the folder of that file first on the path."""
    if path.parent == ROOT / "tracker" and not path.stem.startswith("__"):
        assert path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_imports_the_handlers(path: Path) -> None:
    """Kopf registers handlers at import: a second one would have every event handled twice."""
    if name_of(path) not in MAY_IMPORT_MAIN:
        assert "tracker.main" not in set(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_tells_its_story_and_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if name_of(path) in EDGE:
        return
    offered = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    ]
    assert len(offered) == 1, "no __all__"
    names = ast.literal_eval(offered[0])
    missing = set(names) - set(bound_by(tree))
    assert not missing


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_is_offered_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.name.startswith("_") or ast.get_docstring(node), node.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_reads_the_environment_when_it_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
            text = ast.unparse(node)
            assert "os.environ" not in text
            assert "getenv" not in text


def test_the_package_can_be_found_by_its_name() -> None:
    assert importlib.util.find_spec("tracker") is not None

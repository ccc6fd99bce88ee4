"""
Imports made lighter, before anything heavy is imported.

`kubernetes_asyncio.client` imports a class for every kind and API group of Kubernetes, over a
thousand modules, of which the tracker and Kopf use four: half a second and 35 MiB for nothing.
`lighten` puts these packages into `sys.modules` before their ``__init__`` has run, as modules that
look a name up when it is asked for: in the submodule that is named like it, or else by running
that ``__init__`` after all. So whoever asks for anything gets what they always got.

structlog imports rich, if there is one, for tracebacks that we don't have it draw; it is told that
there is none.
"""

import importlib
import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

__all__ = ["lighten"]

HEAVY: Final = (
    "kubernetes_asyncio",
    "kubernetes_asyncio.client",
    "kubernetes_asyncio.client.models",
)
_WORD_BEGINS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def lighten() -> None:
    """Make the imports that follow lighter; of what was imported already nothing changes."""
    if HEAVY[0] not in sys.modules:
        for name in HEAVY:
            _put_off(name)
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        # What Python takes for a module that can't be found.
        sys.modules["rich"] = None  # type: ignore[assignment] # typeshed knows of modules only
        try:
            importlib.import_module("structlog")
        finally:
            del sys.modules["rich"]


def _put_off(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return  # Then whoever imports it says so.
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Package
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


class _Package(ModuleType):
    """A package whose ``__init__`` has not run; it runs when nothing else has a name."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the package holds
        if name.startswith("__"):
            raise AttributeError(name)
        own = _WORD_BEGINS.sub("_", name).lower()
        for submodule in (own, f"models.{own}"):
            try:
                found = importlib.import_module(f"{self.__name__}.{submodule}")
            except ModuleNotFoundError:
                continue
            return found if own == name else getattr(found, name)
        # From here on it is what it would have been, and a name it lacks is an error as ever.
        self.__class__ = ModuleType  # type: ignore[assignment] # for mypy it stays a subclass
        if self.__spec__.loader is not None:
            self.__spec__.loader.exec_module(self)
        return getattr(self, name)

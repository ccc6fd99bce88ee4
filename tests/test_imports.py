"""What the program imports, in processes of their own: imports of this one would be in the way."""

import subprocess
import sys

import pytest

from tests.support.program import ROOT

LIGHT = "from tracker.imports import lighten; lighten(); import sys; "


def said(code: str) -> str:
    """Return what a program prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.strip()


def test_the_program_imports_no_model_that_it_does_not_use() -> None:
    models = "[name for name in sys.modules if '.client.models.' in name or '.client.api.' in name]"
    assert said(f"{LIGHT}import tracker.main; print(sorted({models}))") == str(
        [
            "kubernetes_asyncio.client.models.v1_object_meta",
            "kubernetes_asyncio.client.models.v1_owner_reference",
        ]
    )


@pytest.mark.parametrize("heavy", ["cryptography", "jwt", "rich", "kubernetes_asyncio.dynamic"])
def test_what_few_need_is_not_imported_for_all(heavy: str) -> None:
    assert said(f"{LIGHT}import tracker.main; print('{heavy}' in sys.modules)") == "False"


@pytest.mark.parametrize("heavy", ["pydantic", "kopf", "aiohttp", "structlog"])
def test_the_version_is_told_without_the_rest(heavy: str) -> None:
    assert said(f"import tracker.cli, sys; print('{heavy}' in sys.modules)") == "False"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param("client.CoreV1Api", "CoreV1Api", id="an API"),
        pytest.param("client.V1PodList", "V1PodList", id="a model"),
        pytest.param("client.models.V1Pod", "V1Pod", id="a model of the models"),
        pytest.param("client.ApiException", "ApiException", id="an error"),
        pytest.param("watch.Watch", "Watch", id="another package"),
        pytest.param("config.ConfigException", "ConfigException", id="the configuration"),
    ],
)
def test_whoever_asks_for_more_gets_it(wanted: str, expected: str) -> None:
    code = f"import kubernetes_asyncio; print(kubernetes_asyncio.{wanted}.__name__)"
    assert said(LIGHT + code) == expected


def test_a_name_that_is_not_there_is_an_error_as_ever() -> None:
    code = "from kubernetes_asyncio import client; print(hasattr(client, 'Nothing'), client.V1Pod)"
    assert said(LIGHT + code).startswith("False <class")


def test_rich_can_be_imported_afterwards() -> None:
    assert said(f"{LIGHT}import rich; print(rich.__name__)") == "rich"


def test_what_was_imported_before_stays_as_it_is() -> None:
    code = "import kubernetes_asyncio.client as before; " + LIGHT
    code += "import kubernetes_asyncio.client as after; print(before is after, before.V1Pod)"
    assert said(code).startswith("True <class")

"""Settings: defaults, who beats whom, what is refused, and that no secret is ever shown."""

import copy
import json
import pickle
import re
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from tracker.flags import FLAG_ONLY, FLAGS, normalise
from tracker.settings import (
    ALIASES,
    Settings,
    SettingsError,
    duration_text,
    load,
)

TOKEN = "canary-7f3a9c"  # noqa: S105 - the secret that must not turn up anywhere


def mistakes_of(environ: dict[str, str], flags: dict[str, str | None] | None = None) -> list[str]:
    """Return the lines that `load` tells; an ORG is given unless `environ` has one."""
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, {"ORG": "acme"} | environ)
    return list(caught.value.mistakes)


def test_every_default_is_pinned() -> None:
    settings = load({}, {"ORG": "acme"})
    found = {name: getattr(settings, name) for name in Settings.model_fields}
    assert found == {
        "org": "acme",
        "base_url": "https://api.github.com",
        "dn_template": "{{namespace}}/{{deploymentName}}/{{containerName}}",
        "logical_environment": "",
        "physical_environment": "",
        "cluster": "",
        "api_token": SecretStr(""),
        "api_token_file": None,
        "gh_app_id": "",
        "gh_install_id": 0,
        "gh_app_private_key": SecretStr(""),
        "gh_app_priv_key_path": None,
        "ca_file": None,
        "proxy_from_env": False,
        "kubeconfig": None,
        "namespace": "",
        "exclude_namespaces": (),
        "images": (),
        "repositories": (),
        "workloads": False,
        "workers": 2,
        "github_rate": 2.6,
        "github_burst": 20,
        "bulk_cluster_sync": True,
        "decommission_delay": timedelta(seconds=5),
        "not_found_interval": timedelta(minutes=5),
        "drain_timeout": timedelta(seconds=20),
        "cronjob_hold": timedelta(hours=25),
        "ledger_path": None,
        "ledger_adopt": False,
        "reconcile_interval": timedelta(minutes=5),
        "resync_interval": timedelta(hours=24),
        "metrics_port": 9090,
        "log_level": "info",
        "log_format": "text",
    }


def test_every_setting_is_described_and_every_example_is_good() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        for example in field.examples or [""]:
            assert example, name
            if name not in {
                "api_token",
                "gh_app_private_key",
            }:  # which has an ellipsis where the secret goes
                Settings.model_validate({"org": "acme", name: example})


def test_every_variable_is_read() -> None:
    environ = {
        "ORG": "octo-org",
        "BASE_URL": "api.octo.ghe.com",
        "DN_TEMPLATE": "{{namespace}}.{{containerName}}",
        "LOGICAL_ENVIRONMENT": "production",
        "PHYSICAL_ENVIRONMENT": "eu-central-1",
        "CLUSTER": "prod-1",
        "API_TOKEN": TOKEN,
        "CA_FILE": "/ca.pem",
        "PROXY_FROM_ENV": "true",
        "NAMESPACE": "shop",
        "EXCLUDE_NAMESPACES": "kube-system, preview-*,",
        "IMAGES": "ghcr.io/acme/*, !*/debug-*,",
        "REPOSITORIES": "ghcr.io/acme/shop-* = shop,",
        "WORKLOADS": "true",
        "WORKERS": "7",
        "GITHUB_RATE": "1.5",
        "GITHUB_BURST": "5",
        "BULK_CLUSTER_SYNC": "false",
        "DECOMMISSION_DELAY": "1s",
        "DRAIN_TIMEOUT": "2",
        "CRONJOB_HOLD": "3h",
        "LEDGER_PATH": "/data/ledger.db",
        "LEDGER_ADOPT": "true",
        "NOT_FOUND_INTERVAL": "30s",
        "RECONCILE_INTERVAL": "1m",
        "RESYNC_INTERVAL": "12h",
        "METRICS_PORT": "9100",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "Json",
    }
    credentials = {
        "API_TOKEN_FILE": "/token",
        "GH_APP_ID": "12",
        "GH_INSTALL_ID": "34",
        "GH_APP_PRIVATE_KEY": "a key",
        "GH_APP_PRIV_KEY_PATH": "/key.pem",
    }
    assert set(environ) | set(credentials) == {
        name.upper() for name in Settings.model_fields if name not in FLAG_ONLY
    }
    assert load({}, environ) == Settings(
        org="octo-org",
        base_url="https://api.octo.ghe.com",
        dn_template="{{namespace}}.{{containerName}}",
        logical_environment="production",
        physical_environment="eu-central-1",
        cluster="prod-1",
        api_token=SecretStr(TOKEN),
        ca_file=Path("/ca.pem"),
        proxy_from_env=True,
        namespace="shop",
        exclude_namespaces=("kube-system", "preview-*"),
        images=("ghcr.io/acme/*", "!*/debug-*"),
        repositories=(("ghcr.io/acme/shop-*", "shop"),),
        workloads=True,
        workers=7,
        github_rate=1.5,
        github_burst=5,
        bulk_cluster_sync=False,
        decommission_delay=timedelta(seconds=1),
        not_found_interval=timedelta(seconds=30),
        drain_timeout=timedelta(seconds=2),
        cronjob_hold=timedelta(hours=3),
        ledger_path=Path("/data/ledger.db"),
        ledger_adopt=True,
        reconcile_interval=timedelta(minutes=1),
        resync_interval=timedelta(hours=12),
        metrics_port=9100,
        log_level="debug",
        log_format="json",
    )


def test_the_process_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "from-outside")
    monkeypatch.setenv("WORKERS", "junk")
    assert load({}, {"ORG": "acme"}).cluster == ""
    assert Settings(org="acme").workers == 2


def test_a_flag_beats_a_variable_and_a_variable_beats_the_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("ORG=file\nWORKERS=3\nNAMESPACE=file\nCLUSTER=file\nSTRANGER=1\nBARE\n")
    settings = load(
        {"workers": "5", "namespace": None, "kubeconfig": "/k", "exclude_namespaces": "a,b*"},
        {"ORG": "variable", "WORKERS": "4", "NAMESPACE": "variable", "EXCLUDE_NAMESPACES": "c"},
        env_file,
    )
    assert (settings.org, settings.namespace, settings.cluster) == ("variable", "variable", "file")
    assert settings.workers == 5
    assert settings.kubeconfig == Path("/k")
    assert settings.exclude_namespaces == ("a", "b*")


def test_a_missing_env_file_is_no_mistake(tmp_path: Path) -> None:
    assert load({}, {"ORG": "acme"}, tmp_path / ".env").org == "acme"


def test_a_mistake_in_the_env_file_names_the_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("WORKERS=many\n")
    with pytest.raises(SettingsError) as caught:
        load({}, {"ORG": "acme"}, env_file)
    assert caught.value.mistakes == (
        f'WORKERS in {env_file}="many": not a whole number; for example WORKERS=2',
    )


def test_an_env_file_that_is_not_text_is_a_mistake(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"ORG=\xff\xfe\n")
    with pytest.raises(SettingsError, match="can't be read"):
        load({}, {"ORG": "acme"}, env_file)


def test_an_empty_variable_is_the_default_and_a_stranger_is_ignored() -> None:
    environ = dict.fromkeys((name.upper() for name in Settings.model_fields), "")
    strangers = {"GH_APP": "1", "KUBECONFIG": "/k", "PATH": "/bin", "org": "lower"}
    assert load({}, environ | {"ORG": "acme"} | strangers) == Settings(org="acme")


def test_an_empty_flag_asks_for_the_default_whatever_the_variable_says() -> None:
    assert load({"namespace": ""}, {"ORG": "acme", "NAMESPACE": "shop"}).namespace == ""


def test_a_flag_that_no_setting_has_is_an_error_of_the_program() -> None:
    with pytest.raises(ValueError, match="no setting has the flag org"):
        load({"org": "acme"}, {})


@pytest.mark.parametrize("environ", [{"GITHUB_ORG": "acme"}, {"GITHUB_ORG": "acme", "ORG": "acme"}])
def test_the_go_tracker_s_name_of_the_organisation_works(environ: dict[str, str]) -> None:
    assert load({}, environ).org == "acme"


def test_two_names_of_one_setting_must_agree() -> None:
    assert mistakes_of({"ORG": "acme", "GITHUB_ORG": "octo"}) == [
        'GITHUB_ORG="octo": ORG says "acme"; remove one of the two'
    ]


def test_all_mistakes_are_told_at_once_one_line_each() -> None:
    found = mistakes_of(
        {
            "ORG": "acme\n",
            "GITHUB_ORG": "octo",
            "BASE_URL": "http://api.github.com",
            "DN_TEMPLATE": "{{pod}}\n\x1b[31m",
            "LOGICAL_ENVIRONMENT": "p" * 129,
            "PHYSICAL_ENVIRONMENT": "eu\x00",
            "CLUSTER": "..",
            "API_TOKEN": f"{TOKEN}\n{TOKEN}",
            "NAMESPACE": "shop",
            "EXCLUDE_NAMESPACES": "*",
            "WORKERS": "8",
            "DECOMMISSION_DELAY": "soon",
            "DRAIN_TIMEOUT": "2h",
            "CRONJOB_HOLD": "-1h",
            "LOG_LEVEL": "loud",
            "LOG_FORMAT": "xml",
        },
        {"workers": "0", "namespace": "Shop"},
    )
    assert [re.split(r"[:=]", line)[0] for line in found] == [
        "GITHUB_ORG",
        "ORG",
        "BASE_URL",
        "DN_TEMPLATE",
        "LOGICAL_ENVIRONMENT",
        "PHYSICAL_ENVIRONMENT",
        "CLUSTER",
        "API_TOKEN",
        "-namespace",
        "EXCLUDE_NAMESPACES",
        "-workers",
        "DECOMMISSION_DELAY",
        "DRAIN_TIMEOUT",
        "CRONJOB_HOLD",
        "LOG_LEVEL",
        "LOG_FORMAT",
    ]
    for line in found:
        assert line.isprintable(), line
        assert ": " in line, line
        assert "; " in line, line
    assert TOKEN not in "\n".join(found)


def test_a_mistake_says_what_where_why_and_what_to_do() -> None:
    assert mistakes_of({"CRONJOB_HOLD": "500d", "LOG_LEVEL": "loud"}, {"workers": "101"}) == [
        '-workers="101": the most is 100; for example -workers=2',
        (
            'CRONJOB_HOLD="500d": not a duration (seconds, or a number with ms, s, m or h); '
            "for example CRONJOB_HOLD=25h"
        ),
        (
            "LOG_LEVEL=\"loud\": input should be 'debug', 'info', 'warning' or 'error'; "
            "for example LOG_LEVEL=info"
        ),
    ]


def test_a_command_is_told_of_mistakes_in_its_own_settings_only() -> None:
    environ = {"WORKERS": "many", "GH_APP_ID": "1", "DN_TEMPLATE": "{{x}}", "NAMESPACE": "shop"}
    with pytest.raises(SettingsError) as caught:
        load({}, environ, only={"dn_template", "namespace"}, needs_org=False)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("DN_TEMPLATE=")
    settings = load({}, environ, only={"namespace"}, needs_org=False)
    assert (settings.namespace, settings.workers) == ("shop", 2)


def test_the_organisation_may_be_left_out_where_it_is_not_needed() -> None:
    assert load({}, {}, needs_org=False).org == ""
    assert load({}, {"ORG": "acme"}, needs_org=False).identity.org == "acme"


def test_an_organisation_is_the_same_one_in_any_case() -> None:
    """Otherwise `ORG=Acme` for `acme` leaves the records to nobody, and retires them in use."""
    one, other = (load({}, {"ORG": org}, needs_org=False) for org in ("acme", "Acme"))
    assert one.identity == other.identity
    assert other.scope.org == "Acme", "as it is written, to GitHub"
    with pytest.raises(SettingsError, match="ORG"):
        load({}, {"ORG": "a b"}, needs_org=False)
    with pytest.raises(SettingsError, match="ORG: required"):
        load({}, {}, only={"org"})


def test_only_the_organisation_is_required() -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, {})
    assert str(caught.value) == "ORG: required, but not set; for example ORG=acme"


def test_bytes_that_are_no_text_are_a_mistake_like_any_other() -> None:
    assert mistakes_of({"ORG": "ac\udcffme", "WORKERS": "0"}) == [
        "ORG: not valid UTF-8; for example ORG=acme",
        'WORKERS="0": the least is 1; for example WORKERS=2',
    ]


@pytest.mark.parametrize(
    "org", ["a", "acme", "ACME-2", "0-0", "a-b-c", "octo-cat_acme", "octocat_acme1", "a" * 39]
)
def test_an_organisation_s_name_is_taken(org: str) -> None:
    assert load({}, {"ORG": org}).org == org


@pytest.mark.parametrize(
    "org",
    [
        "acme\n",
        "\nacme",
        "acme\r",
        " acme",
        "acme ",
        "-acme",
        "acme-",
        "ac--me",
        "a" * 40,
        "_acme",
        "acme_",
        "a_b_c",
        "a_b-c",
        "acme/../evil",
        "acme/repos",
        "..",
        ".",
        "acme.inc",
        "acme%2f",
        "acme?x",
        "acme#x",
        "acme@evil",
        "acme\x00",
        "acmé",
        "аcme",  # noqa: RUF001 - the Cyrillic letter is the point
        "acme\u200b",
        "acme１",  # noqa: RUF001 - the full-width digit is the point
        "{{namespace}}",
    ],
)
def test_what_is_no_organisation_s_name_is_refused(org: str) -> None:
    (line,) = mistakes_of({"ORG": org})
    assert line.startswith("ORG=")
    assert line.isascii()


@pytest.mark.parametrize("cluster", ["a", "prod-eu.1_b", ".a", "...", "-", "a" * 128])
def test_a_cluster_s_name_is_taken(cluster: str) -> None:
    assert load({}, {"ORG": "acme", "CLUSTER": cluster}).cluster == cluster


@pytest.mark.parametrize(
    "cluster",
    [".", "..", "a/b", "../x", "a b", "prod\n", "a%2f", "ä", "a" * 129, "a\u202eb", "arn:aws:x"],
)
def test_what_is_no_cluster_s_name_is_refused(cluster: str) -> None:
    assert len(mistakes_of({"CLUSTER": cluster})) == 1


@pytest.mark.parametrize("variable", ["LOGICAL_ENVIRONMENT", "PHYSICAL_ENVIRONMENT"])
def test_an_environment_is_free_text_that_can_be_seen(variable: str) -> None:
    for good in ("production", "prod eu", "Überall 1", "x" * 128):
        environ = {"ORG": "acme", variable: good}
        assert getattr(load({}, environ), variable.lower()) == good
    for bad in ("x" * 129, "prod\n", " prod", "prod ", "a\x1b[31m", "a\u202eb", "a\u2028b", "\x7f"):
        assert len(mistakes_of({variable: bad})) == 1, repr(bad)


@pytest.mark.parametrize(
    "template",
    [
        "{{namespace}}/{{deploymentName}}/{{containerName}}",
        "{{containerName}}",
        "prod-{{namespace}}-{{namespace}}",
        "{namespace}/{{namespace}}",
        "{{namespace}} $(x) %s {0}",
    ],
)
def test_a_template_is_taken(template: str) -> None:
    assert load({}, {"ORG": "acme", "DN_TEMPLATE": template}).dn_template == template


@pytest.mark.parametrize(
    "template",
    [
        "fixed",
        "{{}}",
        "{{pod}}",
        "{{ namespace }}",
        "{{Namespace}}",
        "{{namespace}}/{{image}}",
        "{{namespace",
        "namespace}}",
        "{{namespace}}/{{",
        "{{namespace}}}}",
        "{{{{namespace}}}}",
        "{{{{namespace}}",
        "{{name{{namespace}}space}}",
        "{namespace}",
        "{{namespace.__class__}}",
        "{{namespace}}\n",
        "{{namespace}}\x00",
        "{{namespace}}\x1b[31m",
        "{{namespace}}\u2028",
        "{{namespace\n}}",
        "{{" + "x" * 10_000 + "}}",
    ],
)
def test_a_template_that_names_wrongly_is_refused(template: str) -> None:
    (line,) = mistakes_of({"DN_TEMPLATE": template})
    assert line.startswith("DN_TEMPLATE=")
    assert line.isprintable()
    assert len(line) < 500


def test_an_unsafe_base_url_is_refused_without_showing_a_password() -> None:
    for url in (f"https://user:{TOKEN}@github.com", f"github.com?t={TOKEN}", f"a.com#{TOKEN}"):
        (line,) = mistakes_of({"BASE_URL": url})
        assert line.startswith("BASE_URL=(not shown")
        assert TOKEN not in line


@pytest.mark.parametrize("namespace", ["default", "a", "0", "a-b", "a" * 63])
def test_a_namespace_is_taken(namespace: str) -> None:
    assert load({"namespace": namespace}, {"ORG": "acme"}).namespace == namespace


@pytest.mark.parametrize(
    "namespace", ["Default", "a_b", "-a", "a-", "a.b", "a/b", "..", "a\n", "a" * 64, "*", "a,b"]
)
def test_what_is_no_namespace_is_refused(namespace: str) -> None:
    assert len(mistakes_of({"NAMESPACE": namespace})) == 1
    assert len(mistakes_of({}, {"namespace": namespace})) == 1


@pytest.mark.parametrize(
    ("text", "globs"),
    [
        ("kube-system", ("kube-system",)),
        ("a, b*,c?d ,", ("a", "b*", "c?d")),
        ("a,a,b,a", ("a", "b")),
        (",,", ()),
        ("*-preview,?", ("*-preview", "?")),
    ],
)
def test_namespaces_are_left_out_by_a_comma_list(text: str, globs: tuple[str, ...]) -> None:
    found = load({"exclude_namespaces": text}, {"ORG": "acme"})
    assert found.exclude_namespaces == globs


@pytest.mark.parametrize("text", ["*", "**", "a,*", "A", "a b", "a;b", "[ab]*", "a/b", "!a"])
def test_globs_that_match_everything_or_nothing_are_refused(text: str) -> None:
    assert len(mistakes_of({"EXCLUDE_NAMESPACES": text})) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("!*", "leaves out every image"),
        ("ghcr.io/acme/app:v1", "has a tag"),
        ("a b", "matches no image's name"),
        ("!", "matches no image's name"),
        ("app@sha256:*", "matches no image's name"),
    ],
)
def test_globs_of_images_that_can_not_be_meant_are_refused(text: str, why: str) -> None:
    (line,) = mistakes_of({"IMAGES": f"registry:5000/*,{text}"})
    assert why in line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ghcr.io/acme/*", "names no repository"),
        ("ghcr.io/acme/*=acme/app", "is not a bare repository name"),
        ("ghcr.io/acme/*=", "is not a bare repository name"),
        ("ghcr.io/acme/*=..", "is not a bare repository name"),
        ("=app", "matches no image's name"),
        ("!ghcr.io/*=app", "not for what does not"),
    ],
)
def test_rules_for_repositories_that_can_not_be_meant_are_refused(text: str, why: str) -> None:
    (line,) = mistakes_of({"REPOSITORIES": f"registry:5000/*=good.one,{text}"})
    assert why in line


@pytest.mark.parametrize("text", ["shop", "sh*", "other,*op"])
def test_the_one_namespace_can_not_be_left_out(text: str) -> None:
    (line,) = mistakes_of({"NAMESPACE": "shop", "EXCLUDE_NAMESPACES": text})
    assert "leaves out the one namespace to watch" in line
    others = load({}, {"ORG": "acme", "NAMESPACE": "shop", "EXCLUDE_NAMESPACES": "x*"})
    assert others.exclude_namespaces == ("x*",)


@pytest.mark.parametrize(
    "text", ["0", "101", "-1", "2.0", "1e1", "1_0", "", "\u0662", "two", " 2", "0x2"]
)
def test_workers_are_a_whole_number_from_1_to_100(text: str) -> None:
    assert load({}, {"ORG": "acme", "WORKERS": "1"}).workers == 1
    assert load({}, {"ORG": "acme", "WORKERS": "100"}).workers == 100
    if text:
        assert len(mistakes_of({"WORKERS": text})) == 1


def test_the_port_for_metrics_can_be_chosen_and_left_out() -> None:
    assert load({}, {"ORG": "acme", "METRICS_PORT": "0"}).metrics_port == 0
    assert (
        load({"metrics_port": "65535"}, {"ORG": "acme", "METRICS_PORT": "1"}).metrics_port == 65535
    )
    assert normalise(["-metrics-port", "9100"]) == ["--metrics-port", "9100"]
    assert mistakes_of({"METRICS_PORT": "65536"}) == [
        'METRICS_PORT="65536": the most is 65535; for example METRICS_PORT=9090'
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        ("0.5", 0.5),
        ("30s", 30),
        ("90m", 5400),
        ("25h", 90000),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1m500ms", 60.5),
    ],
)
def test_a_duration_is_seconds_or_numbers_with_units(text: str, seconds: float) -> None:
    settings = load({}, {"ORG": "acme", "CRONJOB_HOLD": text})
    assert settings.cronjob_hold == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-1s",
        "5 s",
        " 5",
        "5S",
        "5d",
        "s",
        "1h-5m",
        "inf",
        "nan",
        "1e3",
        "1:00",
        "PT5S",
        "\u0665",
    ],
)
@pytest.mark.parametrize("variable", ["DECOMMISSION_DELAY", "DRAIN_TIMEOUT", "CRONJOB_HOLD"])
def test_what_is_no_duration_is_refused(variable: str, text: str) -> None:
    assert len(mistakes_of({variable: text})) == 1


@pytest.mark.parametrize(
    ("variable", "most", "over"),
    [
        ("DECOMMISSION_DELAY", "24h", "24h1s"),
        ("DRAIN_TIMEOUT", "1h", "3601"),
        ("CRONJOB_HOLD", "9600h", "999999999h"),
    ],
)
def test_a_duration_has_a_most(variable: str, most: str, over: str) -> None:
    load({}, {"ORG": "acme", variable: most})
    (line,) = mistakes_of({variable: over})
    assert f"the most is {most};" in line


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)))
def test_a_duration_s_text_reads_back_to_the_millisecond(duration: timedelta) -> None:
    whole = timedelta(milliseconds=duration // timedelta(milliseconds=1))
    text = duration_text(duration)
    if len(text) < 12:  # ten digits and more of milliseconds are not a text people write
        assert Settings.model_validate({"org": "a", "cronjob_hold": text}).cronjob_hold == whole


@pytest.mark.parametrize(
    ("text", "level"),
    [("debug", "debug"), ("INFO", "info"), ("warn", "warning"), ("Warning", "warning")],
)
def test_the_log_level_is_read_in_any_case(text: str, level: str) -> None:
    assert load({}, {"ORG": "acme", "LOG_LEVEL": text}).log_level == level


def test_white_space_around_a_token_is_dropped() -> None:
    settings = load({}, {"ORG": "acme", "API_TOKEN": f" \t{TOKEN}\r\n"})
    assert settings.api_token.get_secret_value() == TOKEN
    assert load({}, {"ORG": "acme", "API_TOKEN": "\n"}).api_token == SecretStr("")


@pytest.mark.parametrize(
    "infix", ["\n", "\r\nHost: evil", "\x00", " ", "\t", "\x7f", "é", "\u200b"]
)
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(infix: str) -> None:
    (line,) = mistakes_of({"API_TOKEN": f"{TOKEN}{infix}{TOKEN}"})
    assert line.startswith("API_TOKEN: it holds")
    assert TOKEN not in line


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(repr, id="repr"),
        pytest.param(str, id="str"),
        pytest.param("{}".format, id="format"),
        pytest.param(lambda settings: repr(settings.model_dump()), id="model_dump"),
        pytest.param(lambda settings: repr(settings.model_dump(mode="json")), id="dump-json-mode"),
        pytest.param(lambda settings: settings.model_dump_json(), id="model_dump_json"),
        pytest.param(lambda settings: repr(dict(settings)), id="dict"),
        pytest.param(lambda settings: repr(vars(settings)), id="vars"),
        pytest.param(lambda settings: repr(copy.deepcopy(settings)), id="copy"),
        pytest.param(lambda settings: repr(settings.warnings()), id="warnings"),
        pytest.param(lambda settings: json.dumps(settings.model_json_schema()), id="schema"),
    ],
)
def test_the_token_is_never_shown(show: Callable[[Settings], str]) -> None:
    settings = load({}, {"ORG": "acme", "API_TOKEN": TOKEN})
    assert TOKEN not in show(settings)


def test_a_traceback_of_mistakes_holds_no_token_and_no_cause() -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, {"ORG": "-", "API_TOKEN": f"{TOKEN} {TOKEN}"})
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_validation_error_of_the_model_itself_hides_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"org": "acme", "api_token": f"{TOKEN} {TOKEN}"})
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(caught.value)


@pytest.mark.parametrize("variable", ["ORG", "CLUSTER", "NAMESPACE", "WORKERS", "LOG_LEVEL"])
@pytest.mark.parametrize(
    "prefix", ["ghp_", "ghs_", "github_pat_", "-----BEGIN RSA ", "eyJhbGciOiJSUzI1NiJ9."]
)
def test_a_credential_in_the_wrong_variable_is_not_shown(variable: str, prefix: str) -> None:
    (line,) = mistakes_of({variable: f"{prefix}{TOKEN} "})
    assert TOKEN not in line
    assert "looks like a credential" in line


@pytest.mark.parametrize(
    "variable",
    ["API_TOKEN_FILE", "GH_APP_PRIV_KEY_PATH", "GH_APP_PRIV_KEY", "CA_FILE"],
)
@pytest.mark.parametrize(
    "prefix",
    ["ghp_", "github_pat_", "-----BEGIN RSA PRIVATE KEY-----\n", "LS0tLS1CRUdJTiBSU0EgUFJJ"],
)
def test_a_credential_in_the_place_of_its_file_is_not_shown(variable: str, prefix: str) -> None:
    """Once, the line told of a file of that name that does not exist."""
    app = {"GH_APP_ID": "1", "GH_INSTALL_ID": "2"} if variable.startswith("GH_") else {}
    (line,) = mistakes_of(app | {variable: prefix + TOKEN})
    assert TOKEN not in line
    assert "not the path of a file" in line


@pytest.mark.parametrize("path", ["/run/secrets/ghe_token", "token", "/a b/ключ"])
def test_a_file_may_have_any_name(path: str) -> None:
    assert load({}, {"ORG": "acme", "API_TOKEN_FILE": path}).api_token_file == Path(path)


def test_settings_are_frozen_and_refuse_what_they_do_not_know() -> None:
    settings = Settings(org="acme")
    with pytest.raises(ValidationError):
        settings.__setattr__("org", "other")
    with pytest.raises(ValidationError):
        Settings.model_validate({"org": "acme", "worker": 3})
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, [], id="none"),
        pytest.param({"LOGICAL_ENVIRONMENT": ""}, ["LOGICAL_ENVIRONMENT"], id="no-environment"),
        pytest.param({"API_TOKEN": ""}, ["API_TOKEN"], id="no-token"),
        pytest.param({"DN_TEMPLATE": "{{containerName}}"}, ["DN_TEMPLATE"], id="open-template"),
        pytest.param(
            {"DN_TEMPLATE": "{{containerName}}", "NAMESPACE": "shop"}, [], id="one-namespace"
        ),
        pytest.param({"GITHUB_RATE": "2", "GITHUB_BURST": "60"}, [], id="just-under-the-rate"),
        pytest.param({"GITHUB_RATE": "2.7"}, ["GITHUB_RATE"], id="over-the-rate"),
        pytest.param({"GITHUB_BURST": "25"}, ["GITHUB_RATE"], id="over-it-with-its-burst"),
        pytest.param(
            {"LOGICAL_ENVIRONMENT": "", "API_TOKEN": "", "DN_TEMPLATE": "{{deploymentName}}"},
            ["LOGICAL_ENVIRONMENT", "API_TOKEN", "DN_TEMPLATE"],
            id="all",
        ),
    ],
)
def test_what_should_be_looked_at_is_warned_of(
    environ: dict[str, str], expected: list[str]
) -> None:
    good = {"ORG": "acme", "LOGICAL_ENVIRONMENT": "production", "API_TOKEN": TOKEN}
    warnings = load({}, good | environ).warnings()
    assert [line.split()[0] for line in warnings] == expected


@given(
    st.dictionaries(
        st.sampled_from([*(n.upper() for n in Settings.model_fields), *ALIASES]), st.text()
    )
)
def test_any_environment_gives_settings_or_printable_mistakes(environ: dict[str, str]) -> None:
    mistakes: tuple[str, ...] = ("none",)
    try:
        load({}, environ)
    except SettingsError as error:
        mistakes = error.mistakes
    assert mistakes
    assert all(line.isprintable() for line in mistakes)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], []),
        (["-namespace", "shop"], ["--namespace", "shop"]),
        (["-namespace=shop"], ["--namespace=shop"]),
        (["-namespace="], ["--namespace="]),
        (["-workers=4", "-kubeconfig", "/k"], ["--workers=4", "--kubeconfig", "/k"]),
        (["-exclude-namespaces", "a,b*"], ["--exclude-namespaces", "a,b*"]),
        (["--namespace", "shop"], ["--namespace", "shop"]),
        (["--namespace=shop"], ["--namespace=shop"]),
        (["run", "-namespace", "shop"], ["run", "--namespace", "shop"]),
        (["run", "-dry-run", "-workers", "3"], ["run", "--dry-run", "--workers", "3"]),
        (["-help"], ["--help"]),
        (["-version"], ["--version"]),
        (["-h"], ["-h"]),
        (["plan", "-f", "pods.yaml"], ["plan", "-f", "pods.yaml"]),
        (["plan", "-fpods.yaml"], ["plan", "-fpods.yaml"]),
        (["plan", "-f", "-"], ["plan", "-f", "-"]),
        (["-namespace", "-workers"], ["--namespace", "-workers"]),
        (
            ["--namespace", "-workers", "-workers", "3"],
            ["--namespace", "-workers", "--workers", "3"],
        ),
        (["-namespace=-workers"], ["--namespace=-workers"]),
        (["-kubeconfig", "--", "-workers", "3"], ["--kubeconfig", "--", "--workers", "3"]),
        (["-namespace"], ["--namespace"]),
        (["--", "-namespace", "shop"], ["--", "-namespace", "shop"]),
        (["explain", "shop/pod", "--", "-workers"], ["explain", "shop/pod", "--", "-workers"]),
        (["---namespace", "x"], ["---namespace", "x"]),
        (["-nonsense"], ["-nonsense"]),
        (["-namespaces", "x"], ["-namespaces", "x"]),
        (["namespace", "x"], ["namespace", "x"]),
        ([""], [""]),
        (["-"], ["-"]),
        (["-dry-run=true"], ["--dry-run=true"]),
    ],
)
def test_go_s_single_dash_flags_become_double_dash_ones(
    argv: list[str], expected: list[str]
) -> None:
    assert normalise(argv) == expected
    assert normalise(expected) == expected


def test_switches_of_a_command_can_be_named() -> None:
    assert normalise(["once", "-retire"], switches=["retire"]) == ["once", "--retire"]
    assert normalise(["once", "-retire"]) == ["once", "-retire"]


def test_flags_are_settings() -> None:
    assert set(FLAGS) <= set(Settings.model_fields)
    assert set(FLAG_ONLY) <= set(FLAGS)
    assert {name.lower() for name in ALIASES.values()} <= set(Settings.model_fields)


APP = {"GH_APP_ID": "12", "GH_INSTALL_ID": "34", "GH_APP_PRIVATE_KEY": "canary-key"}


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, "none"),
        ({"API_TOKEN": TOKEN}, "token"),
        ({"API_TOKEN_FILE": "/token"}, "file"),
        (APP, "app"),
        ({"GH_APP_ID": "Iv23liAbC", "GH_INSTALL_ID": "34", "GH_APP_PRIV_KEY_PATH": "/k"}, "app"),
        ({"GH_APP_ID": "12", "GH_INSTALL_ID": "34", "GH_APP_PRIV_KEY": "/k"}, "app"),
    ],
)
def test_credentials_are_of_one_kind(environ: dict[str, str], kind: str) -> None:
    settings = load({}, {"ORG": "acme", **environ})
    assert settings.credentials == kind
    assert "canary" not in repr(settings)
    assert ("API_TOKEN is empty" in "\n".join(settings.warnings())) == (kind == "none")


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"API_TOKEN": TOKEN, "API_TOKEN_FILE": "/token"},
            "API_TOKEN and API_TOKEN_FILE: both are set; remove one of the two",
        ),
        (
            {**APP, "GH_APP_PRIV_KEY_PATH": "/k"},
            "GH_APP_PRIVATE_KEY and GH_APP_PRIV_KEY_PATH: both are set; remove one of the two",
        ),
        (
            {**APP, "API_TOKEN": TOKEN},
            (
                "API_TOKEN and GH_APP_ID: both are set; use a token or a GitHub App, and remove the"
                " other"
            ),
        ),
        (
            {"GH_APP_ID": "12"},
            (
                "GH_APP_ID: a GitHub App needs GH_INSTALL_ID and GH_APP_PRIVATE_KEY or"
                " GH_APP_PRIV_KEY_PATH as well; set what is missing"
            ),
        ),
        (
            {"GH_APP_PRIV_KEY": "/k", "GH_INSTALL_ID": "1"},
            (
                "GH_INSTALL_ID, GH_APP_PRIV_KEY_PATH: a GitHub App needs GH_APP_ID as well; set"
                " what is missing"
            ),
        ),
    ],
)
def test_two_kinds_of_credentials_and_a_part_of_one_are_told(
    environ: dict[str, str], line: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, {"ORG": "acme", "WORKERS": "none", **environ})
    assert line in caught.value.mistakes
    assert len(caught.value.mistakes) == 2
    assert "canary" not in str(caught.value)

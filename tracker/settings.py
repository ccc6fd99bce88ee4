"""
What the operator is told to do: settings from flags, the environment and a `.env` file.

The command line calls `load` with what it was given; nothing here reads the process environment
by itself, so that a test or an embedding program gets exactly the settings it names. A flag beats
a variable, a variable beats `.env`, and an empty variable counts as not set.

Every mistake is told at once, one line each, before any connection is made. Each line says where
the value stood, what it was (never a secret), why it can't be used and what to write instead.
Deep code gets single values, not `Settings`.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tracker.annotations import REPOSITORY
from tracker.base_url import check_base_url, normalise_base_url
from tracker.flags import FLAG_ONLY, FLAGS
from tracker.images import ImageRules
from tracker.ledger_schema import Identity
from tracker.pods import Rules
from tracker.records import Scope, check_template

__all__ = [
    "ALIASES",
    "Origin",
    "Settings",
    "SettingsError",
    "duration_text",
    "load",
    "origins",
    "read_duration",
]

T = TypeVar("T")

ALIASES: Final = {"GITHUB_ORG": "ORG", "GH_APP_PRIV_KEY": "GH_APP_PRIV_KEY_PATH"}
"""Variables of the Go deployment-tracker that mean one of ours."""

# GitHub: letters, digits and single hyphens, not at the ends, 39 characters in all
# (https://docs.github.com/en/enterprise-cloud@latest/admin/identity-and-access-management).
# Accounts an enterprise manages carry its short code behind one underscore: `octo-cat_acme`.
_ORG: Final = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:_[A-Za-z0-9]+)?")
_ORG_LENGTH: Final = 39

# The path parameter of GitHub's cluster call: ^[a-zA-Z0-9._-]+$, 1 to 128 characters.
_CLUSTER: Final = re.compile(r"[A-Za-z0-9._-]+")
_SCOPE_LENGTH: Final = 128

# RFC 1123 label, as Kubernetes demands of a namespace.
_NAMESPACE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_GLOB: Final = re.compile(r"[a-z0-9*?-]{1,63}")

_IMAGE_GLOB: Final = re.compile(r"!?[A-Za-z0-9._/:*?-]{1,255}")

_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,3})?(?:ms|s|m|h)){1,4}")
_DURATION_PART: Final = re.compile(r"([0-9.]+)(ms|s|m|h)")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?")
_SECONDS_OF: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# A value that looks like a credential is never repeated, whichever setting it was pasted into.
# The last of them is base64 of a PEM.
_CREDENTIAL: Final = re.compile(
    r"gh[a-z]_|github_pat_|-----BEGIN|eyJ[A-Za-z0-9_-]{8,}\.|LS0tLS1CRUdJ"
)
POSTS_PER_MINUTE: Final = 180
"""GitHub: 900 points a minute, of which a POST costs five."""

_KEYS: Final = ("GH_APP_PRIVATE_KEY", "GH_APP_PRIV_KEY_PATH")
_CREDENTIALS: Final = (
    "api_token",
    "api_token_file",
    "gh_app_id",
    "gh_install_id",
    *(name.lower() for name in _KEYS),
)

_SHOWN_LENGTH: Final = 80
_REASON_LENGTH: Final = 240


class SettingsError(Exception):
    """
    The settings can't be used; `mistakes` holds one line for each reason.

    `str()` of it is those lines, ready to be printed. No line holds a secret.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes: tuple[str, ...] = tuple(mistakes)


def _org(text: str) -> str | None:
    if len(text) > _ORG_LENGTH:
        return f"a GitHub organisation's name has at most {_ORG_LENGTH} characters"
    if not _ORG.fullmatch(text):
        return "not a GitHub organisation's name (letters, digits and single hyphens between them)"
    return None


def _environment(text: str) -> str | None:
    if len(text) > _SCOPE_LENGTH:
        return f"GitHub takes at most {_SCOPE_LENGTH} characters"
    if not text.isprintable():
        return "it holds control or invisible characters"
    if text != text.strip():
        # Two environments that differ by a blank are two to GitHub and one to a reader.
        return "with white space around it, it would be another environment to GitHub"
    return None


def _cluster(text: str) -> str | None:
    if len(text) > _SCOPE_LENGTH:
        return f"GitHub takes at most {_SCOPE_LENGTH} characters"
    if text and not _CLUSTER.fullmatch(text):
        return "GitHub takes only letters, digits, dots, underscores and hyphens"
    if text in {".", ".."}:
        return "as a part of a URL it would lead to another path"
    return None


def _namespace(text: str) -> str | None:
    if text and not _NAMESPACE.fullmatch(text):
        return "not a namespace's name (lower-case letters, digits and hyphens, at most 63)"
    return None


def _glob(text: str) -> str | None:
    if not _GLOB.fullmatch(text):
        return f"{_shown(text)} matches no namespace (lower-case letters, digits, -, * and ?)"
    if not text.strip("*"):
        # Excluded means decommissioned: this one character would retire every record.
        return f"{_shown(text)} leaves out every namespace and would decommission every record"
    return None


def _image_glob(text: str) -> str | None:
    if (reason := _against_image_glob(text)) is not None:
        return reason
    if text.startswith("!") and not text[1:].strip("*"):
        return f"{_shown(text)} leaves out every image and would decommission every record"
    return None


def _against_image_glob(text: str) -> str | None:
    if not _IMAGE_GLOB.fullmatch(text) or text == "!":
        return f"{_shown(text)} matches no image's name (letters, digits, . _ / : -, * and ?)"
    if ":" in text.rpartition("/")[2]:
        return f"{_shown(text)} has a tag, and names of images have none"
    return None


def _rule(pair: tuple[str, str]) -> str | None:
    glob, repository = pair
    if glob.startswith("!"):
        return f"{_shown(glob)}: a repository is named for what matches, not for what does not"
    if (reason := _against_image_glob(glob)) is not None:
        return reason
    if not REPOSITORY.fullmatch(repository) or not repository.strip("."):
        return (
            f"{_shown(repository)} is not a bare repository name of ORG (letters, digits, dots,"
            " underscores and hyphens, at most 100)"
        )
    return None


def _app_id(text: str) -> str | None:
    if text and not re.fullmatch(r"[A-Za-z0-9.]{1,64}", text):
        return "not an App ID (digits) or a client ID (like Iv23li…)"
    return None


def _file(path: Path | None) -> str | None:
    # A secret in the place of its file would be told as the name of a file that is not there.
    if path is not None and (_CREDENTIAL.match(str(path)) or not str(path).isprintable()):
        return "not the path of a file; what belongs into one does not belong here"
    return None


def _checked(reason_against: Callable[[T], str | None]) -> AfterValidator:
    """Make a validator of a rule that returns why a value can't be used, or None."""

    def validate(text: T) -> T:
        if (reason := reason_against(text)) is not None:
            raise ValueError(reason)
        return text

    return AfterValidator(validate)


def _token(given: object) -> object:
    """Strip what editors and `echo` leave around a token; refuse what no HTTP header can carry."""
    text = given.get_secret_value() if isinstance(given, SecretStr) else given
    if not isinstance(text, str):
        return text
    text = text.strip()
    if any(not "!" <= char <= "~" for char in text):
        msg = "it holds white space, control or non-ASCII characters; copy it again, as one line"
        raise ValueError(msg)
    return SecretStr(text)


def _globs(given: object) -> object:
    """Split a comma list; blanks around the globs and empty places in the list don't matter."""
    if not isinstance(given, str):
        return given
    return tuple(dict.fromkeys(glob for part in given.split(",") if (glob := part.strip())))


def _rules(given: object) -> object:
    """Split a comma list of `glob=repository`."""
    if not isinstance(given, str):
        return given
    pairs = []
    for part in given.split(","):
        if not part.strip():
            continue
        glob, equals, repository = part.strip().partition("=")
        if not equals:
            msg = f"{_shown(part.strip())} names no repository"
            raise ValueError(msg)
        pairs.append((glob.strip(), repository.strip()))
    return tuple(dict.fromkeys(pairs))


def read_duration(text: str) -> timedelta:
    """Return the duration that a text names, as in a setting. Raises `ValueError`."""
    duration = _duration(text)
    assert isinstance(duration, timedelta)  # noqa: S101 - what it returns for any text
    return duration


def _count(given: object) -> object:
    if isinstance(given, str):
        if not re.fullmatch(r"-?[0-9]{1,9}", given):
            msg = "not a whole number"
            raise ValueError(msg)
        return int(given)
    return given


def _rate(given: object) -> object:
    if isinstance(given, str):
        if not re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", given):
            msg = "not a number"
            raise ValueError(msg)
        return float(given)
    return given


def _duration(given: object) -> object:
    """Read plain seconds (`5`, `0.5`) or numbers with units (`90m`, `1h30m`, `500ms`)."""
    if isinstance(given, timedelta):
        return given
    if isinstance(given, int | float):
        given = str(given)
    if isinstance(given, str):
        if _SECONDS.fullmatch(given):
            return timedelta(seconds=float(given))
        if _DURATION.fullmatch(given):
            parts = _DURATION_PART.findall(given)
            return timedelta(
                seconds=sum(float(number) * _SECONDS_OF[unit] for number, unit in parts)
            )
    msg = "not a duration (seconds, or a number with ms, s, m or h)"
    raise ValueError(msg)


def _choice(given: object) -> object:
    return given.lower() if isinstance(given, str) else given


def _level(given: object) -> object:
    # The Go deployment-tracker says "warn".
    chosen = _choice(given)
    return "warning" if chosen == "warn" else chosen


_Duration = Annotated[timedelta, BeforeValidator(_duration)]
_Environment = Annotated[str, _checked(_environment)]
_Glob = Annotated[str, _checked(_glob)]
_ImageGlob = Annotated[str, _checked(_image_glob)]
_Rule = Annotated[tuple[str, str], _checked(_rule)]


class Settings(BaseSettings):
    """
    The validated settings, frozen.

    Made by `load` from flags and variables, or in a test from keyword arguments, which may be the
    values themselves or their text. Field `some_name` is the variable `SOME_NAME`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # a ValidationError would repeat what was given, token and all
        validate_default=True,
    )

    org: Annotated[str, _checked(_org)] = Field(
        description="GitHub organisation that the records belong to.",
        examples=["acme"],
    )
    base_url: Annotated[str, _checked(check_base_url), AfterValidator(normalise_base_url)] = Field(
        default="https://api.github.com",
        description=(
            "GitHub's API: a host, or a URL without path. https only; http is taken for "
            "localhost, 127.0.0.1, ::1 and hosts that end in .svc or .svc.cluster.local."
        ),
        examples=["https://api.github.com", "https://api.acme.ghe.com"],
    )
    dn_template: Annotated[str, _checked(check_template)] = Field(
        default="{{namespace}}/{{deploymentName}}/{{containerName}}",
        description=(
            "How a record's deployment name is made. Placeholders: {{namespace}}, "
            "{{deploymentName}} (the workload's name), {{containerName}}."
        ),
        examples=["{{namespace}}/{{deploymentName}}/{{containerName}}"],
    )
    logical_environment: _Environment = Field(
        default="",
        description=(
            "Logical environment of every record, at most 128 characters. "
            "GitHub refuses records without one."
        ),
        examples=["production"],
    )
    physical_environment: _Environment = Field(
        default="",
        description=(
            "Physical environment of every record, such as a region; at most 128 characters. "
            "Empty: records carry none."
        ),
        examples=["eu-central-1"],
    )
    cluster: Annotated[str, _checked(_cluster)] = Field(
        default="",
        description=(
            "Name of this cluster in the records: letters, digits, dots, underscores, hyphens; "
            "at most 128. Records can be sent in batches only when it is set."
        ),
        examples=["prod-eu-1"],
    )
    api_token: Annotated[SecretStr, BeforeValidator(_token)] = Field(
        default=SecretStr(""),
        description=(
            'Token with "Artifact metadata: write" on every repository that builds an image of '
            "the cluster. White space around it is dropped. Never printed."
        ),
        examples=["github_pat_…"],
    )
    api_token_file: Annotated[Path | None, _checked(_file)] = Field(
        default=None,
        description=(
            "File that holds the token, instead of API_TOKEN; read again when it changes and when "
            "GitHub refuses the token."
        ),
        examples=["/var/run/secrets/github/token"],
    )
    gh_app_id: Annotated[str, _checked(_app_id)] = Field(
        default="",
        description=(
            "GitHub App to authenticate as, by its App ID or client ID, instead of a token; it "
            'needs "Artifact metadata: write".'
        ),
        examples=["123456"],
    )
    gh_install_id: Annotated[int, BeforeValidator(_count)] = Field(
        default=0,
        ge=0,
        description="Installation of the App in ORG: the number at the end of its settings' URL.",
        examples=["7654321"],
    )
    gh_app_private_key: SecretStr = Field(
        default=SecretStr(""),
        description=(
            "Private key of the App: PEM, PEM with \\n for its line ends, or base64 of it. "
            "Never printed."
        ),
        examples=["-----BEGIN…"],
    )
    gh_app_priv_key_path: Annotated[Path | None, _checked(_file)] = Field(
        default=None,
        description="File that holds the private key of the App, instead of GH_APP_PRIVATE_KEY.",
        examples=["/var/run/secrets/github-app/key.pem"],
    )
    ca_file: Annotated[Path | None, _checked(_file)] = Field(
        default=None,
        description="PEM file of authorities to trust for GitHub, besides the system's.",
        examples=["/etc/ssl/corporate.pem"],
    )
    proxy_from_env: bool = Field(
        default=False,
        description=(
            "Whether requests to GitHub go through the proxy that HTTPS_PROXY, HTTP_PROXY and "
            "NO_PROXY name. The API server is always asked directly."
        ),
        examples=["true"],
    )
    kubeconfig: Path | None = Field(
        default=None,
        description=(
            "Path of the kubeconfig file. Not given: $KUBECONFIG, else the ServiceAccount of the "
            "pod it runs in, else ~/.kube/config."
        ),
        examples=["/etc/deployment-tracker/kubeconfig"],
    )
    namespace: Annotated[str, _checked(_namespace)] = Field(
        default="",
        description="The one namespace to watch; a Role there is enough then. Empty: all.",
        examples=["shop"],
    )
    exclude_namespaces: Annotated[tuple[_Glob, ...], BeforeValidator(_globs)] = Field(
        default=(),
        description=(
            "Namespaces to leave out: a comma list of names and globs (* and ?). "
            "What was recorded of a namespace that is newly left out is decommissioned."
        ),
        examples=["kube-system,preview-*"],
    )
    images: Annotated[tuple[_ImageGlob, ...], BeforeValidator(_globs)] = Field(
        default=(),
        description=(
            "Images to record: a comma list of globs (* and ?) over their names; one that begins "
            "with ! leaves out what matches. Empty: all. A name is matched as it is written and "
            "as it is written out (docker.io/library/nginx). What was recorded of an image that "
            "is newly left out is decommissioned."
        ),
        examples=["ghcr.io/acme/*,!*/debug-*"],
    )
    repositories: Annotated[tuple[_Rule, ...], BeforeValidator(_rules)] = Field(
        default=(),
        description=(
            "Repositories of ORG for images without attestation: a comma list of glob=repository, "
            "of which the first that matches an image's name counts. The annotation "
            "metadata.github.com/github-repository counts before it."
        ),
        examples=["ghcr.io/acme/shop-*=shop,ghcr.io/acme/*=platform"],
    )
    workloads: bool = Field(
        default=False,
        description=(
            "Whether workloads (Deployments, StatefulSets, …) are read, metadata only, and not "
            "just pods: one that is scaled to zero stays deployed, and its annotations count. "
            "manifests/components/workloads sets it and grants what it needs."
        ),
        examples=["true"],
    )
    workers: Annotated[int, BeforeValidator(_count)] = Field(
        default=2,
        ge=1,
        le=100,
        description=(
            "Requests to GitHub in flight at once, at most; one more asks again for what GitHub "
            "refused."
        ),
        examples=["2"],
    )
    github_rate: Annotated[float, BeforeValidator(_rate)] = Field(
        default=2.6,
        gt=0,
        le=1000,
        description=(
            "Requests to GitHub a second, on the average, all workers together. "
            "GitHub takes 180 a minute."
        ),
        examples=["2.6"],
    )
    github_burst: Annotated[int, BeforeValidator(_count)] = Field(
        default=20,
        ge=1,
        le=1000,
        description="Requests to GitHub that may go at once after a quiet time.",
        examples=["20"],
    )
    bulk_cluster_sync: bool = Field(
        default=True,
        description=(
            "Whether records may be sent in batches, which needs CLUSTER. false: one request for "
            "each record."
        ),
        examples=["true"],
    )
    decommission_delay: _Duration = Field(
        default=timedelta(seconds=5),
        ge=timedelta(0),
        le=timedelta(days=1),
        description=(
            "How long a name must be without a pod before it is recorded as decommissioned. "
            "Plain seconds or a number with a unit."
        ),
        examples=["5s"],
    )
    not_found_interval: _Duration = Field(
        default=timedelta(minutes=5),
        ge=timedelta(seconds=1),
        le=timedelta(hours=6),
        description=(
            "How long to wait before GitHub is asked again for an image that it did not know; "
            "doubled each time, up to 6 h. Shorter where attestations follow their images within "
            "a minute, longer where many images have none. "
            "Plain seconds or a number with a unit."
        ),
        examples=["5m"],
    )
    drain_timeout: _Duration = Field(
        default=timedelta(seconds=20),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description=(
            "How long a stop goes on sending what waits; the rest is sent after the next start. "
            "The pod's grace period must be longer. Plain seconds or a number with a unit."
        ),
        examples=["20s"],
    )
    cronjob_hold: _Duration = Field(
        default=timedelta(hours=25),
        ge=timedelta(0),
        le=timedelta(days=400),
        description=(
            "How long a CronJob stands as deployed after its last pod is gone; longer than the "
            "time between two runs. Plain seconds or a number with a unit."
        ),
        examples=["25h"],
    )
    ledger_path: Path | None = Field(
        default=None,
        description=(
            "File that keeps what GitHub acknowledged (SQLite; on a local disk, never on NFS). "
            "Empty: in memory, so that a restart posts everything once more and does not notice "
            "what was deleted while it was down."
        ),
        examples=["/data/ledger.db"],
    )
    ledger_adopt: bool = Field(
        default=False,
        description=(
            "Set to true for one start when the ledger was kept for another API server address or "
            "CA and this is the same cluster all the same: what is absent is then decommissioned."
        ),
        examples=["true"],
    )
    reconcile_interval: _Duration = Field(
        default=timedelta(minutes=5),
        ge=timedelta(seconds=10),
        le=timedelta(days=1),
        description=(
            "How often what was seen is compared with a list of the pods, besides after each gap "
            "in the watch. Plain seconds or a number with a unit."
        ),
        examples=["5m"],
    )
    resync_interval: _Duration = Field(
        default=timedelta(hours=24),
        ge=timedelta(minutes=1),
        le=timedelta(days=30),
        description=(
            "How long after its acknowledgement a record is posted again, in case GitHub lost or "
            "changed it. Plain seconds or a number with a unit."
        ),
        examples=["24h"],
    )
    metrics_port: Annotated[int, BeforeValidator(_count)] = Field(
        default=9090,
        ge=0,
        le=65535,
        description=(
            "Port, on all addresses, for /metrics (Prometheus), /healthz and /readyz. 0: none."
        ),
        examples=["9090"],
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_level)] = (
        Field(
            default="info",
            description="Least level of the diagnostics on stderr: debug, info, warning or error.",
            examples=["info"],
        )
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_choice)] = Field(
        default="text",
        description="How records on stdout and diagnostics on stderr are written: text or json.",
        examples=["text"],
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - not read
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not read
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not read
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not read
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what the caller gives: `load` alone decides what is read from where."""
        return (init_settings,)

    @field_validator("exclude_namespaces")
    @classmethod
    def _leaves_something(cls, globs: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Refuse to watch one namespace and leave it out: it would decommission all it holds."""
        watched: str = info.data.get("namespace", "")
        for glob in globs:
            if watched and fnmatch.fnmatchcase(watched, glob):
                msg = f"{_shown(glob)} leaves out the one namespace to watch, {watched}"
                raise ValueError(msg)
        return globs

    @property
    def credentials(self) -> Literal["token", "file", "app", "none"]:
        """Return which kind of credentials for GitHub is given."""
        if self.gh_app_id:
            return "app"
        if self.api_token_file is not None:
            return "file"
        return "token" if self.api_token.get_secret_value() else "none"

    @property
    def rules(self) -> Rules:
        """Return what is to be recorded."""
        return Rules(
            excluded_namespaces=self.exclude_namespaces,
            images=ImageRules(
                include=tuple(glob for glob in self.images if not glob.startswith("!")),
                exclude=tuple(glob[1:] for glob in self.images if glob.startswith("!")),
                repositories=self.repositories,
            ),
        )

    @property
    def scope(self) -> Scope:
        """Return where all records live."""
        return Scope(
            org=self.org,
            logical_environment=self.logical_environment,
            physical_environment=self.physical_environment,
            cluster=self.cluster,
        )

    @property
    def identity(self) -> Identity:
        """
        Return whose records the ledger's entries are about.

        GitHub takes an organisation's name in any case: by another one it is no other organisation.
        """
        return Identity(
            api_host=urlsplit(self.base_url).netloc,
            org=self.org.lower(),
            logical_environment=self.logical_environment,
            physical_environment=self.physical_environment,
            cluster=self.cluster,
        )

    def hindrances(self) -> tuple[str, ...]:
        """Return why GitHub will refuse everything, one line each."""
        found = []
        if not self.logical_environment:
            found.append(
                "LOGICAL_ENVIRONMENT is empty: GitHub will refuse every record; "
                "set it, for example LOGICAL_ENVIRONMENT=production"
            )
        if self.credentials == "none":
            found.append(
                "API_TOKEN is empty: GitHub will refuse every request; "
                'set it to a token with "Artifact metadata: write", or name a GitHub App'
            )
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """Return what can be started with but should be looked at, one line each."""
        found = list(self.hindrances())
        if "{{namespace}}" not in self.dn_template and not self.namespace:
            found.append(
                "DN_TEMPLATE lacks {{namespace}} while several namespaces are watched: whoever "
                "may create pods in one can take over the records of another; "
                "add {{namespace}}, or watch one with NAMESPACE"
            )
        if self.github_rate * 60 + self.github_burst > POSTS_PER_MINUTE:
            found.append(
                f"GITHUB_RATE and GITHUB_BURST permit more than the {POSTS_PER_MINUTE} requests a"
                " minute that GitHub takes; it will refuse the rest for a time"
            )
        return tuple(found)


class _SettingsOfNobody(Settings):
    """The settings of a command that says nothing to GitHub: no ORG is needed."""

    org: str = ""


class _Given(NamedTuple):
    """One value as it was given, and where."""

    where: str
    text: str


def load(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    env_file: Path | None = None,
    *,
    only: Collection[str] | None = None,
    needs_org: bool = True,
) -> Settings:
    """
    Return the settings that flags, environment and `env_file` give, or tell all mistakes.

    `flags` is keyed by field name (`exclude_namespaces`); None means the flag was not given, while
    an empty one asks for the default, whatever the variable says. `env_file` may be missing; its
    values count only where `environ` has none. Variables that aren't ours are ignored.

    A command that needs few settings names the fields it takes with `only`: mistakes in others are
    not its business, and they keep their defaults. Without `needs_org` ORG may be left out; it is
    checked when it is given.

    Raises SettingsError with every mistake, and ValueError for a flag that is no setting's.
    """
    if unknown := sorted(set(flags).difference(FLAGS)):
        msg = f"no setting has the flag {unknown[0]}"
        raise ValueError(msg)
    mistakes: list[str] = []
    given = _gather(flags, environ, env_file, mistakes)
    if only is not None:
        given = {name: each for name, each in given.items() if name in only}
    values = _values(given, mistakes)
    mistakes.extend(_credential_mistakes(values.keys()))
    kind = Settings if needs_org or "org" in values else _SettingsOfNobody
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        mistakes.extend(_lines(error, given))
    else:
        if not mistakes:
            return settings
    # Outside the except block: what pydantic saw must not reach a traceback.
    raise SettingsError(mistakes)


class Origin(NamedTuple):
    """
    A setting, its value as it may be shown, and where it came from.

    That is `variable` or `flag` (with the name where it is another one, as GITHUB_ORG is for ORG),
    `ORG in .env`, or `default`.
    """

    name: str
    value: str
    where: str


def origins(
    settings: Settings,
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    env_file: Path | None = None,
) -> tuple[Origin, ...]:
    """
    Return each setting, in their order, with where `load` had it from.

    Of a secret only whether it is set is told, and of what looks like one nothing either.
    """
    given = _gather(flags, environ, env_file, [])
    found = []
    for name in Settings.model_fields:
        where, text = given.get(name, _Given("", ""))
        title = f"-{name}" if name in FLAG_ONLY else name.upper()
        if not text:
            where = "default"
        elif where.startswith("-"):
            where = "flag"
        elif " in " not in where:
            where = "variable" if where == title else f"variable {where}"
        found.append(Origin(title, _value_text(getattr(settings, name)), where))
    return tuple(found)


def _value_text(value: object) -> str:
    match value:
        case SecretStr():
            return "(set, not shown)" if value.get_secret_value() else ""
        case timedelta():
            return duration_text(value)
        case bool():
            return str(value).lower()
        case tuple():
            parts = ("=".join(part) if isinstance(part, tuple) else str(part) for part in value)
            text = ",".join(parts)
        case _:
            text = "" if value is None else str(value)
    return "(not shown: it looks like a credential)" if _CREDENTIAL.search(text) else text


def _gather(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    env_file: Path | None,
    mistakes: list[str],
) -> dict[str, _Given]:
    """Return what was given, by field name: the flag before the variable before the file."""
    given: dict[str, _Given] = {}
    if env_file is not None:
        given |= _from_variables(_read(env_file, mistakes), f" in {env_file}", mistakes)
    given |= _from_variables(environ, "", mistakes)
    for name, text in flags.items():
        if text is not None:
            given[name] = _Given(f"-{name.replace('_', '-')}", text)
    return given


def _read(env_file: Path, mistakes: list[str]) -> Mapping[str, str]:
    try:
        source = DotEnvSettingsSource(Settings, env_file=env_file, case_sensitive=True)
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{env_file}: can't be read ({error}); correct it or remove it")
        return {}
    return {name: text for name, text in source.env_vars.items() if text is not None}


def _from_variables(
    environ: Mapping[str, str], suffix: str, mistakes: list[str]
) -> dict[str, _Given]:
    """Return the non-empty values by field name; two names of one setting must agree."""
    given: dict[str, _Given] = {}
    variables = [name.upper() for name in Settings.model_fields if name not in FLAG_ONLY]
    for variable in (*variables, *ALIASES):
        text = environ.get(variable, "")
        if not text:
            continue
        name = ALIASES.get(variable, variable).lower()
        if name not in given:
            given[name] = _Given(f"{variable}{suffix}", text)
        elif given[name].text != text:
            mistakes.append(
                f"{variable}={_shown(text)}{suffix}: {given[name].where} says "
                f"{_shown(given[name].text)}; remove one of the two"
            )
    return given


def _values(given: Mapping[str, _Given], mistakes: list[str]) -> dict[str, str]:
    """Return the texts to validate: an empty one asks for the default."""
    values = {}
    for name, (where, text) in given.items():
        try:
            text.encode()
        except UnicodeEncodeError:  # undecodable bytes of the environment
            mistakes.append(f"{where}: not valid UTF-8; {_remedy(name, where)}")
        else:
            if text:
                values[name] = text
    return values


def _credential_mistakes(names: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with the credentials as a whole: two kinds of them, or a part of one."""
    given = [name.upper() for name in _CREDENTIALS if name in names]
    tokens = [name for name in given if name.startswith("API_TOKEN")]
    app = [name for name in given if name not in tokens]
    keys = [name for name in app if name in _KEYS]
    for both in (tokens, keys):
        if len(both) > 1:
            yield f"{' and '.join(both)}: both are set; remove one of the two"
    if tokens and app:
        yield (
            f"{tokens[0]} and {app[0]}: both are set; use a token or a GitHub App, and remove the"
            " other"
        )
    missing = [name for name in ("GH_APP_ID", "GH_INSTALL_ID") if name not in app]
    missing += [] if keys else [" or ".join(_KEYS)]
    if app and missing:
        needs = " and ".join(missing)
        yield f"{', '.join(app)}: a GitHub App needs {needs} as well; set what is missing"


def _lines(error: ValidationError, given: Mapping[str, _Given]) -> Iterator[str]:
    """Yield a line for each of pydantic's findings."""
    for detail in error.errors(include_url=False, include_input=False):
        name = str(detail["loc"][0])
        value = given.get(name)
        if value is None or not value.text:
            yield f"{name.upper()}: required, but not set; {_remedy(name, name.upper())}"
        elif detail["type"] != "missing":  # else it was not validated, and told already
            why = _one_line(_why(name, detail["type"], detail["msg"]))
            yield f"{value.where}{_equals(name, value.text)}: {why}; {_remedy(name, value.where)}"


def _why(name: str, kind: str, otherwise: str) -> str:
    """Put pydantic's own refusals of bounds and choices into our words."""
    metadata = Settings.model_fields[name].metadata
    if kind == "greater_than_equal":
        return f"the least is {_bound(metadata, 'ge')}"
    if kind == "greater_than":
        return f"it must be more than {_bound(metadata, 'gt')}"
    if kind == "less_than_equal":
        return f"the most is {_bound(metadata, 'le')}"
    if otherwise.startswith("Value error, "):
        return otherwise.removeprefix("Value error, ")
    return otherwise[:1].lower() + otherwise[1:]


def _bound(metadata: Sequence[object], which: str) -> str:
    bound = next(getattr(part, which) for part in metadata if hasattr(part, which))
    return duration_text(bound) if isinstance(bound, timedelta) else str(bound)


def _remedy(name: str, where: str) -> str:
    """Say what to write in that place; a file may be named behind the variable."""
    example = (Settings.model_fields[name].examples or [""])[0]
    return f"for example {where.partition(' ')[0]}={example}"


def _equals(name: str, text: str) -> str:
    if name in {"api_token", "gh_app_private_key"}:
        return ""
    if name == "base_url" and re.search(r"[@?#]", text):
        return "=(not shown: it may hold a password)"
    return f"={_shown(text)}"


def _shown(text: str) -> str:
    """Return the text as it may be printed: quoted, ASCII, cut, and nothing of a credential."""
    if _CREDENTIAL.search(text):
        return "(not shown: it looks like a credential)"
    if len(text) > _SHOWN_LENGTH:
        return json.dumps(text[:_SHOWN_LENGTH]) + "…"
    return json.dumps(text)


def _one_line(text: str) -> str:
    """Escape and cut a reason, which may quote its input: no other line, no terminal colours."""
    escaped = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return escaped if len(escaped) <= _REASON_LENGTH else f"{escaped[:_REASON_LENGTH]}…"


def duration_text(duration: timedelta) -> str:
    """Return a duration as a setting would say it: `25h`, `90m`, `5s`, `500ms`, `0s`."""
    milliseconds = duration // timedelta(milliseconds=1)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds % size == 0 and (milliseconds or unit == "s"):
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"

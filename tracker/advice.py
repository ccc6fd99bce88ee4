"""
What can be wrong, and what to do about it: one catalogue for all who tell of it.

Each `Trouble` is a heading of docs/troubleshooting.md and its value that heading's anchor; a test
holds the two to each other. `ADVICE` has for each what it is, why it comes about and what to do
next. Where it is wrong (a host, a file, a record) is the business of whoever tells of it.

`trouble_of` reads the one-line messages that this program makes and returns which trouble they are
about. It goes by how they begin, so it is the same for a line that was just made, one that the
ledger kept as a name's reason, and one that a person pasted. `doctor`, the diagnostics of a running
tracker and the command line all ask it, so a reason is explained in one way everywhere.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

__all__ = ["ADVICE", "PAGE", "Advice", "Trouble", "advice_on", "located", "see", "trouble_of"]

PAGE: Final = "docs/troubleshooting.md"


@unique
class Trouble(StrEnum):
    """What can be wrong; the value is its anchor in docs/troubleshooting.md."""

    # What GitHub answers.
    HTTP_401 = "http-401"
    HTTP_403 = "http-403"
    HTTP_404 = "http-404"
    HTTP_422 = "http-422"
    HTTP_429 = "http-429"
    HTTP_5XX = "http-5xx"
    UNEXPECTED_ANSWER = "unexpected-answer"
    # The way to GitHub.
    DNS = "dns"
    TLS = "tls"
    CONNECTION = "connection"
    PROXY = "proxy"
    CLOCK = "clock"
    # What it authenticates with.
    TOKEN = "token"  # noqa: S105 - an anchor
    TOKEN_EXPIRY = "token-expiry"  # noqa: S105 - an anchor
    GITHUB_APP = "github-app"
    # Settings.
    SETTINGS = "settings"
    ORG = "org"
    BASE_URL = "base-url"
    TEMPLATE = "template"
    ENVIRONMENT = "environment"
    # The cluster.
    KUBECONFIG = "kubeconfig"
    API_SERVER = "api-server"
    API_SERVER_401 = "api-server-401"
    RBAC = "rbac"
    WORKLOADS = "workloads"
    NAME_SHARED = "name-shared"
    # The ledger.
    LEDGER_LOCKED = "ledger-locked"
    LEDGER_NEWER = "ledger-newer"
    LEDGER_CLUSTER = "ledger-of-another-cluster"
    LEDGER_IDENTITY = "ledger-of-another-identity"
    LEDGER_CORRUPT = "ledger-corrupt"
    LEDGER_ANEW = "ledger-written-anew"
    LEDGER_PLACE = "ledger-place"
    LEDGER_WRITE = "ledger-not-written"
    LEDGER_MEMORY = "ledger-in-memory"
    RECORD_LOST = "record-lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is wrong, why it comes about and what to do next, a sentence or two each."""

    what: str
    why: str
    next_step: str


ADVICE: Final[Mapping[Trouble, Advice]] = {
    Trouble.HTTP_401: Advice(
        what="GitHub does not take the token",
        why="It is wrong, was revoked or has expired; nothing can be sent with it.",
        next_step="Make a new token and put it where the old one is; with API_TOKEN_FILE no"
        " restart is needed.",
    ),
    Trouble.HTTP_403: Advice(
        what="the token lacks a permission",
        why='It lacks "Artifact metadata: write" on the repository that built the image, or the'
        " organisation has not approved the token.",
        next_step="Grant it to the token or the GitHub App on that repository; refused records are"
        " asked again by themselves.",
    ),
    Trouble.HTTP_404: Advice(
        what="GitHub knows no artifact of this digest",
        why="There is no attestation of it yet, or the token may not see its repository, or ORG is"
        " no organisation, or the digest is that of an index where one platform was attested (or"
        " the other way round).",
        next_step="Attest the image in its build, or name its repository (REPOSITORIES); give the"
        " token the repository; it is asked for again while it runs.",
    ),
    Trouble.HTTP_422: Advice(
        what="GitHub rejects the record",
        why="A value of it breaks GitHub's rules; GitHub's own words say which.",
        next_step="Correct that value (mostly LOGICAL_ENVIRONMENT, CLUSTER or an annotation); the"
        " record is sent again when it changes, and daily.",
    ),
    Trouble.HTTP_429: Advice(
        what="GitHub limits how much is sent",
        why="The token's share of requests is used up, perhaps by others with the same token.",
        next_step="Nothing: it goes on by itself. If it comes often, give the tracker a token of"
        " its own, set CLUSTER so that records go in batches, or lower GITHUB_RATE.",
    ),
    Trouble.HTTP_5XX: Advice(
        what="GitHub, or what stands before it, has a fault",
        why="An outage, or a gateway that gave up waiting.",
        next_step="Nothing: it is sent again by itself. If it lasts, look at githubstatus.com.",
    ),
    Trouble.UNEXPECTED_ANSWER: Advice(
        what="what answers is not GitHub's API",
        why="A redirect, a page or a status that GitHub does not give here: a proxy, a gateway or a"
        " wrong BASE_URL.",
        next_step="Check BASE_URL and what stands between the cluster and GitHub.",
    ),
    Trouble.DNS: Advice(
        what="the host's name can't be resolved",
        why="BASE_URL is misspelt, or the pod has no working DNS (a NetworkPolicy, CoreDNS).",
        next_step="Check BASE_URL; look the name up in a pod of the same namespace.",
    ),
    Trouble.TLS: Advice(
        what="the host can't prove who it is",
        why="Its certificate has expired, names another host, or is signed by an authority that is"
        " not trusted here, such as a proxy that opens TLS; or the clock is off.",
        next_step="Set CA_FILE to the authority's certificate if it is one of yours; else have the"
        " certificate renewed. Verification can't be turned off.",
    ),
    Trouble.CONNECTION: Advice(
        what="GitHub can't be reached",
        why="The connection is refused, reset, or nothing comes back: a firewall, a NetworkPolicy,"
        " a missing proxy, or an outage.",
        next_step="Open the way to that host and port, or set PROXY_FROM_ENV=true with"
        " HTTPS_PROXY; what could not be sent is sent then.",
    ),
    Trouble.PROXY: Advice(
        what="the proxy refuses or can't be used",
        why="HTTPS_PROXY is no http URL, or the proxy wants other credentials or forbids the host.",
        next_step="Correct HTTPS_PROXY or NO_PROXY, or have the proxy let the host through.",
    ),
    Trouble.CLOCK: Advice(
        what="the clock of this machine is off",
        why="Its time differs from GitHub's by more than half a minute: a GitHub App's signature"
        " may be refused, and times in the log are wrong.",
        next_step="Turn on time synchronisation on the node (chrony, systemd-timesyncd).",
    ),
    Trouble.TOKEN: Advice(
        what="there is no token that can be used",
        why="API_TOKEN is empty, or API_TOKEN_FILE can't be read or holds no token, or what it"
        " holds is not one to send.",
        next_step='Set API_TOKEN or API_TOKEN_FILE to a token with "Artifact metadata: write", or'
        " name a GitHub App.",
    ),
    Trouble.TOKEN_EXPIRY: Advice(
        what="the token expires soon",
        why="It was made with an end; after it GitHub answers 401 to everything.",
        next_step="Make a new one in time; with API_TOKEN_FILE it is taken without a restart, and a"
        " GitHub App needs none.",
    ),
    Trouble.GITHUB_APP: Advice(
        what="the GitHub App gets no token",
        why="GH_APP_ID, GH_INSTALL_ID and the key don't belong together, the App is not installed"
        " in ORG, its key can't be read, or the clock is off.",
        next_step="Compare the three with the App's settings page; make a new private key there if"
        " the old one is lost.",
    ),
    Trouble.SETTINGS: Advice(
        what="a setting can't be used",
        why="Its value breaks a rule of that setting; the line says which.",
        next_step="Write what the line says; docs/configuration.md has each setting.",
    ),
    Trouble.ORG: Advice(
        what="ORG names no organisation",
        why="It is empty, misspelt, an address instead of a name, or a person's account; or the"
        " token may not see it.",
        next_step="Set ORG to the name as it stands in github.com/NAME.",
    ),
    Trouble.BASE_URL: Advice(
        what="no token may be sent to BASE_URL",
        why="It is no https host, or has a path, a user name or a query, or is an address that"
        " hands out credentials. GitHub Enterprise Server does not offer this API.",
        next_step="Use api.github.com, or api.SUBDOMAIN.ghe.com with data residency.",
    ),
    Trouble.TEMPLATE: Advice(
        what="DN_TEMPLATE can't be used, or leaves names open to others",
        why="It has an unknown placeholder or none, or it lacks {{namespace}} while several"
        " namespaces are watched.",
        next_step="Use {{namespace}}, {{deploymentName}} and {{containerName}}, each of them.",
    ),
    Trouble.ENVIRONMENT: Advice(
        what="LOGICAL_ENVIRONMENT is empty",
        why="It is part of every record, and GitHub refuses a record without it.",
        next_step="Set it, for example LOGICAL_ENVIRONMENT=production.",
    ),
    Trouble.KUBECONFIG: Advice(
        what="there are no credentials for the API server",
        why="No kubeconfig was found or it can't be read, its exec plugin failed, or the pod has no"
        " ServiceAccount token.",
        next_step="Name a kubeconfig with -kubeconfig or KUBECONFIG; in a pod set"
        " serviceAccountName as the manifests do.",
    ),
    Trouble.API_SERVER: Advice(
        what="the API server can't be asked",
        why="It is away, its address is wrong, a NetworkPolicy is in the way, or its certificate is"
        " not signed by the CA of the kubeconfig.",
        next_step="Try kubectl get --raw /version with the same kubeconfig; nothing is"
        " decommissioned meanwhile.",
    ),
    Trouble.API_SERVER_401: Advice(
        what="the API server does not know who asks",
        why="The token or certificate of the kubeconfig has expired, or is another cluster's.",
        next_step="Renew it; it is read again by itself.",
    ),
    Trouble.RBAC: Advice(
        what="the ServiceAccount may not read pods",
        why="The ClusterRole, or with NAMESPACE the Role, or its binding is missing or names"
        " another account.",
        next_step="Apply manifests/base (or overlays/namespaced); it needs get, list and watch on"
        " pods and nothing else.",
    ),
    Trouble.WORKLOADS: Advice(
        what="workloads can't be read",
        why="WORKLOADS=true is set, but what it needs was not granted.",
        next_step="Add manifests/components/workloads, which grants get and list on six kinds, or"
        " leave WORKLOADS unset.",
    ),
    Trouble.NAME_SHARED: Advice(
        what="several workloads or containers have the same deployment name",
        why="DN_TEMPLATE gives them the same text; only the newest pod's record stands, the others"
        " have none.",
        next_step="Give DN_TEMPLATE more of its placeholders; the default tells apart all but"
        " workloads of different kinds with one name.",
    ),
    Trouble.LEDGER_LOCKED: Advice(
        what="another process has the ledger",
        why="One tracker owns it at a time; during a rolling update the old pod may still have it.",
        next_step="Stop the other one, or wait: Kubernetes tries again. A second tracker needs a"
        " LEDGER_PATH of its own.",
    ),
    Trouble.LEDGER_NEWER: Advice(
        what="a newer version wrote the ledger",
        why="The program was set back to a version that does not know the file's schema; the file"
        " was not touched.",
        next_step="Run the newer version again, or move the file away: everything that runs is then"
        " posted once more.",
    ),
    Trouble.LEDGER_CLUSTER: Advice(
        what="the ledger was kept for another cluster",
        why="The API server's address or CA is another than before. What is absent here is left as"
        " it stands at GitHub.",
        next_step="The same cluster: LEDGER_ADOPT=true for one start. Another one: a ledger and a"
        " CLUSTER of its own.",
    ),
    Trouble.LEDGER_IDENTITY: Advice(
        what="the ledger holds records of another organisation, environment, cluster or host",
        why="ORG, BASE_URL, LOGICAL_ENVIRONMENT, PHYSICAL_ENVIRONMENT or CLUSTER was changed; the"
        " old records stand as they were left.",
        next_step="Change it back, or have the old settings decommission them, or leave them.",
    ),
    Trouble.LEDGER_CORRUPT: Advice(
        what="the ledger is corrupt",
        why="The volume lost or changed bytes, or something else wrote to the file.",
        next_step="Check the volume. At its next start the tracker moves the file aside and begins"
        " a new one: what runs is posted once more.",
    ),
    Trouble.LEDGER_ANEW: Advice(
        what="the ledger broke or went while the tracker ran",
        why="The volume lost or changed bytes, or somebody moved or deleted the file. Memory had"
        " all that it held, and wrote it to a new file.",
        next_step="Check the volume, and who else works in its folder. What broke is kept beside"
        " it; delete that when it is of no more use.",
    ),
    Trouble.LEDGER_PLACE: Advice(
        what="the ledger's place can't be used",
        why="Its folder is missing or may not be written to, it is no plain file or another"
        " program's, or it is on a network file system.",
        next_step="Set LEDGER_PATH to a file of its own on a local disk, in a folder that this user"
        " may write to.",
    ),
    Trouble.LEDGER_WRITE: Advice(
        what="the ledger can't be written",
        why="Its volume is full, read-only or broken, or another file or process took its place."
        " What can't be written down is not sent.",
        next_step="Make room or mend the volume; it goes on by itself, and a restart would forget"
        " what memory still knows. Only where its place was taken it has to be restarted, which the"
        " liveness probe does.",
    ),
    Trouble.LEDGER_MEMORY: Advice(
        what="the ledger is in memory",
        why="LEDGER_PATH is empty: a restart posts everything once more and does not notice what"
        " was deleted while it was down.",
        next_step="Set LEDGER_PATH to a file on a disk, as the manifests do.",
    ),
    Trouble.RECORD_LOST: Advice(
        what="GitHub holds no record where the ledger has an acknowledged one",
        why="It was lost or removed there, or BASE_URL leads to another GitHub than before.",
        next_step="Compare with deployment-tracker audit, and post the difference with --fix;"
        " without it that happens within RESYNC_INTERVAL, a day.",
    ),
}

# How messages begin, in the order in which they are tried. The program makes them in
# tracker.answers, auth, transport, cluster, ledger, ledger_file and settings, and as diagnostics in
# app, delivery, lookups and watch.
_AT_FIRST: Final = "(?:no token for the App: )?"
_SIGNS: Final[tuple[tuple[re.Pattern[str], Trouble], ...]] = tuple(
    (re.compile(sign), trouble)
    for sign, trouble in (
        (r"no token for the App: HTTP \d+, a limit", Trouble.HTTP_429),
        (r"no token for the App: HTTP 5", Trouble.HTTP_5XX),
        (r"no token for the App: HTTP", Trouble.GITHUB_APP),
        (r"the clock is off", Trouble.CLOCK),
        (
            r"HTTP 429|HTTP 403 .*(?:, a limit$|(?i:(?:rate|secondary) limit|abuse|too many req))",
            Trouble.HTTP_429,
        ),
        (r"HTTP 401", Trouble.HTTP_401),
        (r"HTTP (?:403|207 unauthorized)", Trouble.HTTP_403),
        (r"HTTP (?:404|207 not_found)", Trouble.HTTP_404),
        (r"HTTP (?:400|413|422|207 (?!without))", Trouble.HTTP_422),
        (r"HTTP (?:5\d\d|408)", Trouble.HTTP_5XX),
        (r"HTTP \d|answers to batches can't be read", Trouble.UNEXPECTED_ANSWER),
        (rf"{_AT_FIRST}malformed answer", Trouble.UNEXPECTED_ANSWER),
        (rf"{_AT_FIRST}host name not found", Trouble.DNS),
        (rf"{_AT_FIRST}TLS |CA_FILE", Trouble.TLS),
        (rf"{_AT_FIRST}the proxy refused|HTTPS?_PROXY", Trouble.PROXY),
        (rf"{_AT_FIRST}(?:timeout|connection |no connection|broken pipe)", Trouble.CONNECTION),
        (rf"{_AT_FIRST}(?:no route to host|network is |host is )", Trouble.CONNECTION),
        (r"API_TOKEN|the token file can't be read", Trouble.TOKEN),
        (r"GH_|the App's token could not be renewed", Trouble.GITHUB_APP),
        (r"(?:GITHUB_)?ORG\b", Trouble.ORG),
        (r"BASE_URL", Trouble.BASE_URL),
        (r"DN_TEMPLATE", Trouble.TEMPLATE),
        (r"LOGICAL_ENVIRONMENT is empty", Trouble.ENVIRONMENT),
        (r"no credentials for the API server|a certificate for the API server", Trouble.KUBECONFIG),
        (r"the token for the API server is empty", Trouble.KUBECONFIG),
        (r"the API server refused to tell of [\w ]+: 401", Trouble.API_SERVER_401),
        (r"the API server refused to tell of pods: 403", Trouble.RBAC),
        (r"the API server refused to tell of (?:its version|self\w+): 403", Trouble.API_SERVER_401),
        (r"the API server refused to tell of \w+: 403", Trouble.WORKLOADS),
        (r"the API server |what answered for the API server", Trouble.API_SERVER),
        (r"workloads can't be read", Trouble.WORKLOADS),
        (r"a name is shared", Trouble.NAME_SHARED),
        (r"the ledger .+ is in use by another process", Trouble.LEDGER_LOCKED),
        (r"the ledger .+ was written by a newer version", Trouble.LEDGER_NEWER),
        (r"the ledger was kept for another cluster", Trouble.LEDGER_CLUSTER),
        (r"the ledger holds records of another", Trouble.LEDGER_IDENTITY),
        (r"the ledger (?:.+ is corrupt|was corrupt|has rows)", Trouble.LEDGER_CORRUPT),
        (r"the ledger broke or went", Trouble.LEDGER_ANEW),
        (r"the ledger .+ could not be written|the ledger .+ is closed", Trouble.LEDGER_WRITE),
        (r"the ledger is in memory", Trouble.LEDGER_MEMORY),
        (r"the (?:ledger|file) .+ (?:can't|needs|was replaced|is another)", Trouble.LEDGER_PLACE),
    )
)


def advice_on(text: str) -> Advice | None:
    """Return the advice on a message or reason of this program, or None when there is none."""
    trouble = trouble_of(text)
    return None if trouble is None else ADVICE[trouble]


def trouble_of(text: str) -> Trouble | None:
    """Return what a one-line message or reason of this program is about, or None."""
    return next((trouble for sign, trouble in _SIGNS if sign.match(text)), None)


def see(trouble: Trouble) -> str:
    """Return where a trouble is written about, as messages name it."""
    return f"{PAGE}#{trouble.value}"


def located(mistake: str) -> str:
    """Return a line about what can't be used with the place where that is written about."""
    return f"{mistake} ({see(trouble_of(mistake) or Trouble.SETTINGS)})"

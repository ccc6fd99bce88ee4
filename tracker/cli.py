"""
The command line: `deployment-tracker`, or `python -m tracker`.

`run` is the default command, so that the flags of the Go tracker work as they did. Modules that
are heavy to import are imported by the command that needs them.
"""

import gc
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from tracker import __version__
from tracker.flags import normalise

if TYPE_CHECKING:
    from tracker.settings import Settings

__all__ = ["main"]

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 2
_DEFAULT = "run"

_HELP = {"help_option_names": ["-h", "--help"]}


_EPILOG = """
\b
Completion of commands and options (bash; or zsh_source, fish_source):
  eval "$(_DEPLOYMENT_TRACKER_COMPLETE=bash_source deployment-tracker)"
"""
_EXPLAIN = """
Why one pod is recorded as it is, or is not.

Shows its owner, the annotations that count, where each image's digest, name and version come from,
the deployment name, what should stand, and what the ledger holds. Nothing is posted.

\b
  deployment-tracker explain shop/web-5d8f7c9b4-x2x1z
  kubectl get pods -n shop -o yaml |
    deployment-tracker explain shop/web-5d8f7c9b4-x2x1z -f -

\b
Exit codes: 0 explained; 1 no such pod, or it can't be read; 2 a setting is
wrong.
"""
_PLAN = """
What would be posted or skipped now, and why. Nothing is posted.

From the cluster, or from a file as kubectl prints it: a List, single pods, several documents, YAML
or JSON. No token is needed. With LEDGER_PATH and ORG names are compared with what GitHub
acknowledged; without, all that runs is shown as to be deployed. A List is taken for all pods:
names that are not in it would be decommissioned.

\b
  deployment-tracker plan
  deployment-tracker plan -namespace shop --all
  kubectl get pods -A -o yaml | deployment-tracker plan -f -
  deployment-tracker plan -f pods.yaml -o json | jq .summary

\b
Exit codes: 0 planned; 1 the pods can't be read; 2 a setting can't be used.
"""
_STATUS = """
What the ledger holds: how many names GitHub acknowledged, and which not, with reason, age and next
attempt.

Reads the file of LEDGER_PATH; a tracker may have it meanwhile. Names that stand though their pods
wait to start are shown when the cluster can be asked.

\b
  deployment-tracker status
  deployment-tracker status --state parked --state not_found --offline
  kubectl exec deploy/deployment-tracker -- python -m tracker status -o json

\b
Exit codes: 0 GitHub acknowledged all; 1 something is pending, parked or not
found, or the ledger is busy; 2 a setting or the ledger can't be used.
"""

_output = click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How the result is written.",
)
_file = click.option(
    "--file", "-f", metavar="PATH", help="Read pods from a file (- for stdin), not the cluster."
)
_kubeconfig = click.option("--kubeconfig", metavar="PATH", help="Path to a kubeconfig file.")
_namespace = click.option("--namespace", metavar="NAME", help="Namespace to watch (empty: all).")
_exclude = click.option(
    "--exclude-namespaces", metavar="GLOBS", help="Namespaces left out, e.g. 'kube-*,test'."
)
_workers = click.option("--workers", metavar="N", help="How many workers post, 1 to 100 (2).")


def _flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of the settings that it may need."""
    for flag in (_workers, _exclude, _namespace, _kubeconfig):
        command = flag(command)
    return command


def _short_help(text: str) -> str:
    return text.strip().split("\n", 1)[0]


@click.group(context_settings=_HELP, epilog=_EPILOG)
@click.version_option(__version__, "--version", prog_name="deployment-tracker")
def _cli() -> None:
    """
    Keep GitHub's deployment records true.

    What runs in a Kubernetes cluster is recorded as deployed, what is gone as decommissioned.
    Without a command: run.
    """


@_cli.command(context_settings=_HELP)
@_flags
@click.option("--fix", is_flag=True, help="Post again what GitHub does not hold.")
@_output
@click.option("--all", "show_all", is_flag=True, help="Show the names that agree, too.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4),
    default=2,
    show_default=True,
    help="How many questions may be under way at once.",
)
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where answers are kept, so that an interrupted audit goes on (beside the ledger).",
)
def audit(
    *,
    fix: bool,
    output: str,
    show_all: bool,
    concurrency: int,
    resume: Path | None,
    **flags: str | None,
) -> None:
    """
    Hold cluster, ledger and GitHub side by side, digest by digest.

    GitHub tells which names it holds for a digest, and not whether they are deployed: that is the
    ledger's word. Exit code 0: all agree that is watched here; 1: something differs, or could not
    be asked or judged; 2: a setting can't be used.
    """
    settings = _load(flags)
    from tracker.commands.audit import audit as run_audit
    from tracker.commands.output import Format

    with _refusing():
        sys.exit(
            run_audit(
                settings,
                fix=fix,
                output=Format(output),
                show_all=show_all,
                concurrency=concurrency,
                resume=resume,
            )
        )


@_cli.command(context_settings=_HELP)
@click.option(
    "--pods",
    type=click.IntRange(1, 5000),
    default=24,
    show_default=True,
    help="How many pods start at first, over 10 workloads and one of nobody's; 11 at least.",
)
@click.option("--keep", is_flag=True, help="Leave the servers up and print their addresses.")
@click.option("--seed", type=int, default=1, show_default=True, help="What chance starts from.")
def demo(pods: int, *, keep: bool, seed: int) -> None:
    """Run the whole job against simulated servers on this machine."""
    from tracker.sandbox.story import tell

    sys.exit(tell(pods=pods, keep=keep, seed=seed))


@_cli.command(context_settings=_HELP)
@_flags
@click.option("--env-file", type=click.Path(path_type=Path), help="A .env that kopf run reads.")
@_output
def doctor(output: str, env_file: Path | None, **flags: str | None) -> None:
    """
    Check rights, token, GitHub, clock, ledger: all that is needed.

    Nothing is written anywhere. Exit code 0: all is well or only warned of; 1: a check failed;
    2: a setting can't be used.
    """
    _lighten()
    from tracker import logs
    from tracker.commands import doctor as command
    from tracker.commands.output import Format
    from tracker.settings import SettingsError, load, origins

    if env_file is not None:
        _check_env_file(env_file)
    try:
        settings = load(flags, os.environ, env_file)
    except SettingsError as error:
        _refuse(error.mistakes)
    logs.configure(level="warning", as_json=settings.log_format == "json")
    told = origins(settings, flags, os.environ, env_file)
    sys.exit(command.run(settings, told, environ=os.environ, output=Format(output)))


@_cli.command(context_settings=_HELP, help=_EXPLAIN, short_help=_short_help(_EXPLAIN))
@click.argument("pod", metavar="NAMESPACE/POD")
@_file
@_output
@_kubeconfig
@_namespace
def explain(pod: str, file: str | None, output: str, **flags: str | None) -> None:
    """Tell why a pod is recorded as it is, or is not."""
    settings = _load_for_looking(flags)
    from tracker.commands.explain import explain as explain_pod
    from tracker.commands.output import Format

    sys.exit(explain_pod(settings, pod=pod, file=file, output=Format(output)))


@_cli.command(context_settings=_HELP)
@_flags
@click.option("--dry-run", is_flag=True, help="Send nothing: say what would be posted.")
@click.option("--retire", is_flag=True, help="Decommission all that stands, before an uninstall.")
@click.option("--yes", is_flag=True, help="With --retire: don't ask.")
@click.option(
    "--timeout", metavar="DURATION", default="10m", show_default=True, help="Give up after this."
)
def once(*, dry_run: bool, retire: bool, yes: bool, timeout: str, **flags: str | None) -> None:
    """
    Bring GitHub in step with the cluster once, and exit.

    Exit code 0: everything is true; 1: something was refused, not found or not delivered in time;
    2: a setting can't be used.
    """
    from tracker.settings import read_duration

    try:
        seconds = read_duration(timeout).total_seconds()
    except ValueError as error:
        _refuse([f"--timeout: {error}"])
    if yes and not retire:
        _refuse(["--yes: it answers what --retire asks; give both, or none"])
    settings = _load(flags)
    if retire:
        from tracker.commands.retire import retire as run_retire

        with _refusing():
            sys.exit(run_retire(settings, seconds=seconds, yes=yes, dry_run=dry_run))
    from tracker.commands.once import once as run_once

    with _refusing():
        sys.exit(run_once(settings, seconds=seconds, dry_run=dry_run))


@_cli.command(context_settings=_HELP, help=_PLAN, short_help=_short_help(_PLAN))
@_file
@_output
@click.option("--all", "everything", is_flag=True, help="List what is unchanged, too.")
@_kubeconfig
@_namespace
@_exclude
def plan(file: str | None, output: str, *, everything: bool, **flags: str | None) -> None:
    """Tell what would be posted or skipped."""
    settings = _load_for_looking(flags)
    from tracker.commands.output import Format
    from tracker.commands.plan import plan as show_plan

    sys.exit(show_plan(settings, file=file, output=Format(output), everything=everything))


@_cli.command(context_settings=_HELP)
@_flags
@click.option("--metrics-port", metavar="PORT", help="Port for metrics and probes (9090; 0: none).")
@click.option("--dry-run", is_flag=True, help="Send nothing: say what would be posted.")
def run(*, dry_run: bool, **flags: str | None) -> None:
    """
    Watch pods and post records until stopped.

    The other settings are environment variables: ORG is required, API_TOKEN is the token.
    Flags may have one dash or two.
    """
    settings = _load(flags)
    from tracker.main import run as run_tracker

    with _refusing():
        sys.exit(run_tracker(settings, dry_run=dry_run))


@_cli.command(
    context_settings=_HELP,
    help=_STATUS,
    short_help="What the ledger holds, and what GitHub has not acknowledged.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["acknowledged", "pending", "not_found", "parked"]),
    help="List names in this state (may be given several times).",
)
@click.option("--all", "everything", is_flag=True, help="List what is acknowledged, too.")
@click.option("--offline", is_flag=True, help="Don't ask the cluster which pods wait to start.")
@_output
@_kubeconfig
@_namespace
def status(
    output: str, *, states: Sequence[str], everything: bool, offline: bool, **flags: str | None
) -> None:
    """Tell what the ledger holds."""
    settings = _load_for_looking(flags, needs_org=True)
    from tracker.commands.output import Format
    from tracker.commands.status import status as show_status
    from tracker.entries import Account

    code = show_status(
        settings,
        output=Format(output),
        states=[Account(state) for state in states],
        everything=everything,
        offline=offline,
    )
    sys.exit(code)


@_cli.command(context_settings=_HELP)
def version() -> None:
    """Print the version."""
    click.echo(f"deployment-tracker {__version__}")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, `run` when they name none; exit."""
    arguments = normalise(sys.argv[1:] if argv is None else argv)
    if not arguments or (
        arguments[0].startswith("-") and arguments[0] not in {"-h", "--help", "--version"}
    ):
        arguments = [_DEFAULT, *arguments]
    _cli.main(args=arguments, prog_name="deployment-tracker")
    sys.exit(EXIT_FAILURE)  # never reached: click exits


def _check_env_file(path: Path) -> None:
    """Tell when the file that was asked for is none, and exit; what reads it passes that over."""
    try:
        why = "" if stat.S_ISREG(path.stat().st_mode) else "it is not a plain file"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        _refuse([f"--env-file {path}: can't be read ({why}); name a file as kopf run reads it"])


def _load_for_looking(flags: Mapping[str, str | None], *, needs_org: bool = False) -> "Settings":
    """Return the settings of a command that only looks, or tell what can't be used and exit."""
    _lighten()
    # They read, show and end: to look for cycles among all that was read is a tenth of their time.
    gc.disable()
    from tracker import logs
    from tracker.commands.view import FIELDS
    from tracker.settings import SettingsError, load

    try:
        settings = load(flags, os.environ, only=FIELDS, needs_org=needs_org)
    except SettingsError as error:
        _refuse(error.mistakes)
    logs.configure(level="error", as_json=False)
    return settings


def _load(flags: Mapping[str, str | None]) -> "Settings":
    """Return the settings, with diagnostics set up as they say, or tell all mistakes and exit."""
    _lighten()
    from tracker import logs
    from tracker.settings import SettingsError, load

    try:
        settings = load(flags, os.environ)
    except SettingsError as error:
        _refuse(error.mistakes)
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json")
    return settings


def _lighten() -> None:
    """Leave out of what is imported next what nobody here uses."""
    from tracker.imports import lighten

    lighten()


@contextmanager
def _refusing() -> Iterator[None]:
    """Tell what can't be used of what a command wants to open, and exit."""
    from tracker.errors import (
        AuditFileError,
        ConnectionSettingError,
        CredentialsError,
        LedgerError,
        LedgerLockedError,
        PortError,
    )

    try:
        yield
    except LedgerLockedError as error:
        # No mistake in the settings: the other process may end, and a later start may do.
        _refuse([str(error)], code=EXIT_FAILURE)
    except (
        AuditFileError,
        CredentialsError,
        LedgerError,
        ConnectionSettingError,
        PortError,
    ) as error:
        _refuse([str(error)])


def _refuse(mistakes: Sequence[str], *, code: int = EXIT_CONFIGURATION) -> NoReturn:
    """Tell what can't be used, one line each, and where it is written about; exit."""
    from tracker.advice import located

    for mistake in mistakes:
        click.echo(f"deployment-tracker: {located(mistake)}", err=True)
    sys.exit(code)

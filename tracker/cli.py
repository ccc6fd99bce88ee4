"""
The command line: `deployment-tracker`, or `python -m tracker`.

`run` is the default command, so that the flags of the Go tracker work as they did. Modules that
are heavy to import are imported by the command that needs them.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from tracker import __version__

if TYPE_CHECKING:
    from tracker.settings import Settings

__all__ = ["main"]

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 2
_DEFAULT = "run"

_HELP = {"help_option_names": ["-h", "--help"]}


def _flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of the settings that have one."""
    for flag in (
        click.option("--workers", metavar="N", help="How many workers post, 1 to 100 (2)."),
        click.option(
            "--exclude-namespaces", metavar="GLOBS", help="Namespaces left out, e.g. 'kube-*,test'."
        ),
        click.option("--namespace", metavar="NAME", help="Namespace to watch (empty: all)."),
        click.option("--kubeconfig", metavar="PATH", help="Path to a kubeconfig file."),
    ):
        command = flag(command)
    return command


@click.group(context_settings=_HELP)
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
@click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How the result is written.",
)
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
    Hold cluster, ledger and GitHub against each other, digest by digest.

    GitHub tells which names it holds for a digest, and not whether they are deployed: that is the
    ledger's word. Exit code 0: all agree; 1: something differs, or could not be asked; 2: a
    setting can't be used.
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
    default=20,
    show_default=True,
    help="How many pods start at first, over 8 workloads.",
)
@click.option("--keep", is_flag=True, help="Leave the servers up and print their addresses.")
@click.option("--seed", type=int, default=1, show_default=True, help="What chance starts from.")
def demo(pods: int, *, keep: bool, seed: int) -> None:
    """Run the whole job against a simulated cluster and GitHub on this machine."""
    from tracker.sandbox.story import tell

    sys.exit(tell(pods=pods, keep=keep, seed=seed))


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


@_cli.command(context_settings=_HELP)
@_flags
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


@_cli.command(context_settings=_HELP)
def version() -> None:
    """Print the version."""
    click.echo(f"deployment-tracker {__version__}")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, `run` when they name none; exit."""
    from tracker.settings import normalise

    arguments = normalise(sys.argv[1:] if argv is None else argv)
    if not arguments or (
        arguments[0].startswith("-") and arguments[0] not in {"-h", "--help", "--version"}
    ):
        arguments = [_DEFAULT, *arguments]
    _cli.main(args=arguments, prog_name="deployment-tracker")
    sys.exit(EXIT_FAILURE)  # never reached: click exits


def _load(flags: Mapping[str, str | None]) -> "Settings":
    """Return the settings, with diagnostics set up as they say, or tell all mistakes and exit."""
    from tracker import logs
    from tracker.settings import SettingsError, load

    try:
        settings = load(flags, os.environ)
    except SettingsError as error:
        _refuse(error.mistakes)
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json")
    return settings


@contextmanager
def _refusing() -> Iterator[None]:
    """Tell what can't be used of what a command wants to open, and exit."""
    from tracker.errors import (
        AuditFileError,
        ConnectionSettingError,
        CredentialsError,
        LedgerError,
        LedgerLockedError,
    )

    try:
        yield
    except LedgerLockedError as error:
        # No mistake in the settings: the other process may end, and a later start may do.
        _refuse([str(error)], code=EXIT_FAILURE)
    except (AuditFileError, CredentialsError, LedgerError, ConnectionSettingError) as error:
        _refuse([str(error)])


def _refuse(mistakes: Sequence[str], *, code: int = EXIT_CONFIGURATION) -> NoReturn:
    """Tell what can't be used, one line each, and exit."""
    for mistake in mistakes:
        click.echo(f"deployment-tracker: {mistake}", err=True)
    sys.exit(code)

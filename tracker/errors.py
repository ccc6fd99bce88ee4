"""
What can go wrong outside of us, in the words of whoever has to mend it.

    TrackerError
    ├── AuditFileError          the answers of an audit can't be kept where they were asked for
    ├── CredentialsError        no way to the API server is configured
    ├── ConnectionSettingError  a token, key, proxy or CA for GitHub can't be used
    ├── ListError               a list of pods could not be had
    ├── PodFileError            a file of pods can't be read
    ├── PortError               the port for metrics and probes can't be listened on
    └── LedgerError             the ledger's file can't be used
        ├── LedgerGoneError     its file went in mid-run
        ├── LedgerLockedError   another process has it
        ├── LedgerMissingError  there is none to be read
        ├── LedgerNewerError    a newer version wrote it
        ├── LedgerTakenError    another file or owner took its place in mid-run
        ├── LedgerTextError     an entry is not one that it can hold
        ├── LedgerUnusableError its place can't hold a ledger
        └── LedgerWriteError    a write failed while the tracker ran

What GitHub says is not here: expected answers are values (`tracker.answers`).
"""

__all__ = [
    "AuditFileError",
    "ConnectionSettingError",
    "CredentialsError",
    "LedgerError",
    "LedgerGoneError",
    "LedgerLockedError",
    "LedgerMissingError",
    "LedgerNewerError",
    "LedgerTakenError",
    "LedgerTextError",
    "LedgerUnusableError",
    "LedgerWriteError",
    "ListError",
    "PodFileError",
    "PortError",
    "TrackerError",
]


class TrackerError(Exception):
    """The base of all errors of this package; its text is one line for people."""


class AuditFileError(TrackerError):
    """What an audit asked for can't be kept or read again; the text says where and why."""


class CredentialsError(TrackerError):
    """No way to the API server is configured; the text says what was looked at."""


class ConnectionSettingError(TrackerError):
    """
    What GitHub is reached with can't be used: a token's file, a key, a proxy, a CA file.

    The text says which and why, and never holds a secret.
    """


class ListError(TrackerError):
    """A list could not be had; the text says why."""


class PodFileError(TrackerError):
    """A file that is to hold pods can't be read; the text names it and says why."""


class PortError(TrackerError):
    """The port for metrics and probes can't be listened on; the text says which and why."""


class LedgerError(TrackerError):
    """The ledger's file can't be used; the text names it, the cause and what to do."""


class LedgerGoneError(LedgerError):
    """Nothing stands where the ledger was when it was opened."""


class LedgerLockedError(LedgerError):
    """Another process has the ledger: there is never more than one writer."""


class LedgerMissingError(LedgerError):
    """There is no ledger where one was to be read; nothing was created."""


class LedgerNewerError(LedgerError):
    """A newer version of this program wrote the ledger; the file was not touched."""


class LedgerTakenError(LedgerError):
    """Another file stands where the ledger was, or its lock is gone: it may be another's now."""


class LedgerTextError(LedgerError):
    """An entry holds what is no text; it was not written, nor was any that came with it."""


class LedgerUnusableError(LedgerError):
    """The ledger could not be opened where it was asked for."""


class LedgerWriteError(LedgerError):
    """
    An entry could not be written in mid-run: what `get` returns is unchanged.

    The ledger goes on: a later write works once its cause is gone. One that is corrupt or gone is
    written anew from memory before this is raised.
    """

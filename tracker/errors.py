"""
What can go wrong outside of us, in the words of whoever has to mend it.

    TrackerError
    ├── CredentialsError   no way to the API server is configured
    └── ListError          a list of pods could not be had

What GitHub says is not here: expected answers are values (`tracker.answers`).
"""

__all__ = ["CredentialsError", "ListError", "TrackerError"]


class TrackerError(Exception):
    """The base of all errors of this package; its text is one line for people."""


class CredentialsError(TrackerError):
    """No way to the API server is configured; the text says what was looked at."""


class ListError(TrackerError):
    """A list could not be had; the text says why."""

"""
GitHub Apps of the simulated GitHub: what they sign is checked, and tokens are minted that end.

https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import jwt

__all__ = ["Apps"]

CLAIMS: Final = ("iat", "exp", "iss")
MAX_LIFE_SECONDS: Final = 600
"""How far ahead the end of what an App signs may be."""


@dataclass(slots=True, kw_only=True)
class Apps:
    """
    The Apps that are known, and the tokens of their installations that have not ended.

    `wall()` is the server's time in seconds since the epoch; `lifetime_seconds` is what a token
    lives from when it is minted.
    """

    wall: Callable[[], float]
    lifetime_seconds: float = 3600.0
    minted: int = 0
    _installations: dict[int, tuple[str, str]] = field(default_factory=dict)
    _ends: dict[str, float] = field(default_factory=dict)

    def register(self, app_id: str, installation_id: int, public_key: str) -> None:
        """Know an App's installation; `public_key` is a PEM text."""
        self._installations[installation_id] = (app_id, public_key)

    def tokens(self) -> frozenset[str]:
        """Return the tokens that have not ended."""
        now = self.wall()
        self._ends = {token: end for token, end in self._ends.items() if end > now}
        return frozenset(self._ends)

    def revoke(self) -> None:
        """End every token at once."""
        self._ends.clear()

    def mint(self, signed: str, installation_id: int) -> Mapping[str, Any] | None:
        """Return a token as GitHub tells it: None for a bad signature, {} where nothing is."""
        if installation_id not in self._installations:
            return {} if self._installations else None
        app_id, key = self._installations[installation_id]
        now = self.wall()
        try:
            # Its times are held against this server's clock, not against the machine's.
            claims = jwt.decode(
                signed,
                key,
                algorithms=["RS256"],
                options={
                    "verify_exp": False,
                    "verify_iat": False,
                    "require": ["iat", "exp", "iss"],
                },
            )
            in_time = claims["iat"] <= now < claims["exp"] <= now + MAX_LIFE_SECONDS
        except (jwt.PyJWTError, TypeError):
            return None
        if not in_time or claims["iss"] != app_id:
            return None
        token = f"ghs_{secrets.token_hex(18)}"
        self.minted += 1
        self._ends[token] = now + self.lifetime_seconds
        end = datetime.fromtimestamp(self._ends[token], tz=UTC)
        return {
            "token": token,
            "expires_at": end.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "permissions": {"artifact_metadata": "write"},
            "repository_selection": "all",
        }

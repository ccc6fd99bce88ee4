"""Where the token for GitHub comes from."""

from pydantic import SecretStr

__all__ = ["FixedToken"]


class FixedToken:
    """A token that is given once and stays the same."""

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    async def token(self) -> SecretStr:
        """Return it."""
        return self._token

    async def renew(self, refused: SecretStr) -> SecretStr:  # noqa: ARG002 - the protocol's
        """Return it: there is no other."""
        return self._token

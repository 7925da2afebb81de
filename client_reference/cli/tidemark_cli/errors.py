"""What can go wrong for a user of `tide`, each with its exit code.

Exception
└── TideError            1  refused; nothing has changed
    ├── Temporary        3  no network, or the service cannot answer now: everything is kept, try again
    ├── Rejections       4  the service rejected changes: they are parked (`tide rejected`)
    ├── Mismatch         5  a replica's digest was not the server's
    ├── Upgrade          6  the service no longer speaks this store's schema number: everything is kept
    ├── LoginNeeded      7  no token, or one that is not accepted (any more)
    └── TooMuch          1  a push was refused whole with 400 or 413 (handled by sending less)
"""

from __future__ import annotations


class TideError(Exception):
    exit_code = 1


class Temporary(TideError):
    """Trying again later may help; `retry_after` in seconds, where the service said so."""

    exit_code = 3

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejections(TideError):
    exit_code = 4


class Mismatch(TideError):
    exit_code = 5


class Upgrade(TideError):
    exit_code = 6


class LoginNeeded(TideError):
    exit_code = 7


class TooMuch(TideError):
    """`final`: it came from the service itself, so that a mutation refused alone is a dead letter (SPEC 4)."""

    def __init__(self, code: str, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.code = code
        self.final = final

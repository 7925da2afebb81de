"""What the service is doing, told as spans: a request, a batch, a page, a stream that opens.

`web/traces.py` hands them to OpenTelemetry. A span says what kind of work it is and how much, never whose: no users,
scopes, rows, tokens or messages of errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

Link = object
"""What stands for a span elsewhere; its makers alone look inside."""


class Span:
    """A piece of work under way, of which nobody wants to know."""

    def set(self, name: str, value: str | float) -> None:
        """Tell something more of it."""

    def answered(self, status: int) -> None:
        """Of a request: its answer's HTTP status."""


class Tracer(Protocol):
    """Takes spans, as context managers."""

    def request(
        self, method: str, route: str, headers: Iterable[tuple[bytes, bytes]], /
    ) -> AbstractContextManager[Span]:
        """A request, which goes on with its caller's trace where its headers name one; `route` is a template."""

    def span(self, name: str, /) -> AbstractContextManager[Span]:
        """Work that is part of the present span, if any."""

    def joint(self, name: str, links: Sequence[Link | None], /) -> AbstractContextManager[Span]:
        """Work done for several spans at once: it is part of none, and linked to all."""

    def here(self) -> Link | None:
        """The present span; None without one."""

    def close(self) -> None:
        """Hand on what waits, if that takes a few seconds at most; it may block."""


class Untraced:
    """Does nothing with them."""

    _nothing = nullcontext(Span())

    def request(self, *_: object) -> AbstractContextManager[Span]:
        return self._nothing

    def span(self, *_: object) -> AbstractContextManager[Span]:
        return self._nothing

    def joint(self, *_: object) -> AbstractContextManager[Span]:
        return self._nothing

    def here(self) -> Link | None:
        return None

    def close(self) -> None:
        """Nothing waits."""


UNTRACED: Final = Untraced()
"""For parts that nobody traces."""

"""What a commit tells those who follow a scope."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from tidemark.store.base import ScopeState


class Commit(Struct, frozen=True):
    """One commit in one scope: `changes` is the wire form of its `count` changes, above `after` and up to
    `state.head`, joined by commas in version order: the very bytes that went into the feed. `count` is 0 and
    `state.head == after` when only members or clocks moved.
    """

    after: int
    state: ScopeState
    count: int
    changes: bytes


CommitListener = Callable[[Commit], None]
"""Called after each durable commit of this process, in commit order for each scope; must not block."""

"""`changes` frames: the feed's bytes with a run's head around them, built once for all who get the same (SPEC 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tidemark.store.base import ScopeState
from tidemark_protocol import digest, messages
from tidemark_protocol.watermark import Watermark


class Frame(NamedTuple):
    """A frame ready to send; `size` is the bytes of its text."""

    text: str
    size: int


def encoded(frame: messages.ServerFrame) -> Frame:
    body = messages.encode(frame)
    return Frame(body.decode(), len(body))


class FrameMaker:
    """`epoch` gives the database's; `clock` a reading not below the wall time nor the reading it is given
    ("" for none); `rewritten` changes in the shape of a schema number.
    """

    def __init__(
        self, epoch: Callable[[], str], clock: Callable[[str], str], rewritten: Callable[[int, bytes], bytes]
    ) -> None:
        self.epoch = epoch
        self.clock = clock
        self._rewritten = rewritten

    def batch(self, after: int, state: ScopeState, changes: bytes | None) -> Batch:
        return Batch(self, after, state, changes)

    def whole_run(
        self, state: ScopeState, after: int, changes: bytes, *, schema: int, base: int = 0, reset: bool = False
    ) -> Frame:
        """A run from `after` up to the head; `schema` is the number that its reader named."""
        run = messages.run_bytes(
            scope=state.scope,
            after=after,
            to=state.head,
            head=state.head,
            watermark=str(Watermark(self.epoch(), state.head, base, schema)),
            digest=digest.text(state.live, state.total),
            reset=reset,
            changes=self._rewritten(schema, changes),
        )
        body = b'{"t":"changes",%b,"clock":"%b"}' % (run, self.clock(state.clock).encode())
        return Frame(body.decode(), len(body))


class Batch:
    """What came in a scope after version `after`, up to the head of `state`.

    `changes` None: too much for the stream.
    """

    __slots__ = ("_frames", "_maker", "after", "changes", "scope", "size", "state", "to")

    def __init__(self, maker: FrameMaker, after: int, state: ScopeState, changes: bytes | None) -> None:
        self.scope = state.scope
        self.after = after
        self.to = state.head
        self.state = state
        self.changes = changes
        self.size = 0 if changes is None else len(changes)
        self._maker = maker
        self._frames: dict[int, Frame] = {}

    def frame(self, schema: int) -> Frame | None:
        """The frame for readers of this schema number; None when there is too much for one."""
        if self.changes is None:
            return None
        frame = self._frames.get(schema)
        if frame is None:
            frame = self._frames[schema] = self._maker.whole_run(self.state, self.after, self.changes, schema=schema)
        return frame

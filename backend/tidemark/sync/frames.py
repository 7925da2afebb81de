"""`changes` frames: the feed's bytes with a run's head around them, built once for all who get the same (SPEC 6)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from tidemark.store.base import ScopeState
from tidemark_protocol import digest, messages
from tidemark_protocol.watermark import Watermark


class Frame:
    """A frame ready to send, made once for all who get it: `wire` is one message of a websocket, `size` the bytes of
    the JSON in it. A server's messages are not masked, so these bytes serve all (RFC 6455, 5.2).
    """

    __slots__ = ("size", "wire")

    def __init__(self, body: bytes) -> None:
        self.size = len(body)
        self.wire = _text_header(self.size) + body

    @property
    def body(self) -> bytes:
        """The JSON."""
        return self.wire[len(self.wire) - self.size :]

    @property
    def texts(self) -> list[str]:
        """For a server that makes the messages itself: the text of each."""
        return [self.body.decode()]


class Joined(Frame):
    """Several frames that go out in one piece."""

    __slots__ = ("_frames",)

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self.size = sum(frame.size for frame in frames)
        self.wire = b"".join([frame.wire for frame in frames])

    @property
    def texts(self) -> list[str]:
        return [text for frame in self._frames for text in frame.texts]


def joined(frames: Sequence[Frame]) -> Frame:
    """One frame for several, sent in their order."""
    return frames[0] if len(frames) == 1 else Joined(frames)


def _text_header(size: int) -> bytes:
    """The header of a final, unmasked text frame."""
    if size < 126:
        return struct.pack("!BB", 0x81, size)
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size)
    return struct.pack("!BBQ", 0x81, 127, size)


def encoded(frame: messages.ServerFrame) -> Frame:
    return Frame(messages.encode(frame))


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
        return Frame(b'{"t":"changes",%b,"clock":"%b"}' % (run, self.clock(state.clock).encode()))


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

"""The frames in docs/stream.md are frames."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from tidemark_protocol import messages
from tidemark_protocol.errors import RequestError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stream.md"


def test_every_frame_shown_is_understood() -> None:
    """What the page shows decodes as a frame of the side that sends it, and a room's frames of both sides are shown."""
    blocks = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    kinds = {(msgspec.json.decode(line)["t"], _is_clients(line)) for line in lines}
    assert {(kind, client) for kind in ("presence", "broadcast") for client in (True, False)} <= kinds
    assert {("hello", True), ("join", True), ("leave", True), ("welcome", False), ("changes", False)} <= kinds


def _is_clients(line: str) -> bool:
    """Whether a client says it; fails unless exactly one side may, with all of its members known."""
    sides = []
    for decode in (messages.decode_client_frame, messages.decode_server_frame):
        try:
            frame = decode(line)
        except (RequestError, msgspec.ValidationError):
            continue
        if set(msgspec.json.decode(line)) <= set(msgspec.to_builtins(frame)):
            sides.append(decode is messages.decode_client_frame)
    assert len(sides) == 1, line
    return sides[0]

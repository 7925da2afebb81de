"""The vectors of the stream: rooms and their names, what is shown and said in them, pauses asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidemark_protocol import rooms
from tidemark_protocol.client_rooms import Gathered
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Member, Welcome, decode_server_frame
from tidemark_protocol.stream_client import ClientStream
from tidemark_protocol.stream_server import Limits, Send, ServerStream, retry_hint

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "sync_protocol" / "vectors" / "stream.json").read_text(encoding="utf-8")
)
CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def vectors(kind: str) -> list[Any]:
    """The vectors of a kind, each named by its claim."""
    return [pytest.param(case, id=case["claim"]) for case in CASES if case["kind"] == kind]


def test_every_vector_is_read() -> None:
    """No vector is of a kind that no test here reads."""
    assert {case["kind"] for case in CASES} == {"room", "frame", "presence", "retry"}


@pytest.mark.parametrize("case", vectors("room"))
def test_room(case: dict[str, Any]) -> None:
    """This is a room of this scope, or no room (SPEC 6)."""
    if case["expect"] is not None:
        assert rooms.scope_of(case["room"]) == case["expect"]
    else:
        with pytest.raises(RequestError) as refused:
            rooms.scope_of(case["room"])
        assert refused.value.code == "malformed"


@pytest.mark.parametrize("case", vectors("frame"))
def test_frame(case: dict[str, Any]) -> None:
    """A frame about a room asks for this, or is refused so, naming the room (SPEC 6)."""
    stream = ServerStream(Limits(**case.get("limits", {})), 0, lambda _: None)
    stream.receive(json.dumps({"t": "hello", "token": "good", "client": CLIENT, "schema": 3}), 0)
    stream.authenticated("ada", 1_000, 0)
    (effect,) = stream.receive(json.dumps(case["frame"]), 0)
    found = msgspec.to_builtins(effect.frame if isinstance(effect, Send) else effect)
    if isinstance(effect, Send):
        said = {"error": found["code"]} | ({"room": found["room"]} if "room" in found else {})
        assert said == case["expect"]
    else:
        assert {"effect": type(effect).__name__} | found == case["expect"]


@pytest.mark.parametrize("case", vectors("presence"))
def test_presence(case: dict[str, Any]) -> None:
    """After each frame these are in the room; null: the frame says nothing yet (SPEC 6) (I42)."""
    stream = ClientStream(CLIENT, 3)
    stream.start(0)
    stream.connected("token", 1_000, {}, 0)
    stream.received(Welcome("s1", "ada", {}, [], "0192f3a4b5c6-0000-00000000000000aa", 25), 0)
    stream.join("workspace:7")
    members: dict[str, Member] = {}
    for step in case["steps"]:
        effects = stream.received(decode_server_frame(json.dumps(step["frame"])), 0)
        if step["members"] is None:
            assert effects == []
        else:
            (gathered,) = effects
            assert isinstance(gathered, Gathered)
            members = gathered.applied(members)
            assert members == step["members"]


@pytest.mark.parametrize("case", vectors("retry"))
def test_retry(case: dict[str, Any]) -> None:
    """A close reason asks for this pause in ms, or for none (SPEC 6) (I45)."""
    assert retry_hint(case["reason"]) == case["expect"]

"""What travels, decoded (SPEC 4 to 7)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import messages
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Mutation, NotAFrame

CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def push(more: str = '"mutations":[]') -> bytes:
    """A push whose envelope ends with these members."""
    return f'{{"client":"{CLIENT}","schema":3,{more}}}'.encode("utf-8", "surrogatepass")


def refused(body: bytes) -> bool:
    """Whether a body is no push: `malformed`, whose status is 400."""
    try:
        messages.decode_push(body)
    except RequestError as error:
        return (error.code, error.status) == ("malformed", 400)
    return False


def test_a_push_is_decoded() -> None:
    """What a mutation leaves out is None; members that nobody knows are ignored."""
    request = messages.decode_push(
        push('"mutations":[{"seq":1,"op":"put","fields":{"a":1},"colour":"x"},{"seq":5}],"whatever":[{}]')
    )
    assert (request.client, request.schema) == (CLIENT, 3)
    assert request.mutations == [Mutation(1, op="put", fields={"a": 1}), Mutation(5)]


@pytest.mark.parametrize("member", ["op", "entity", "row", "at", "scope", "fields", "group"])
@pytest.mark.parametrize("value", [None, 1, 1.5, True, "text", [], {}, {"a": [None]}])
def test_a_fault_inside_a_mutation_is_its_own(member: str, value: Any) -> None:
    """The body is taken whatever stands in any member but `seq`."""
    request = messages.decode_push(push(f'"mutations":[{{"seq":1,"{member}":{json.dumps(value)}}}]'))
    assert getattr(request.mutations[0], member) == value


@pytest.mark.parametrize(
    "mutations",
    [
        "{}",
        '{"op":"put"}',
        '{"seq":null}',
        '{"seq":"1"}',
        '{"seq":true}',
        '{"seq":1.0}',
        '{"seq":1e0}',
        '{"seq":1.5}',
        '{"seq":0}',
        '{"seq":-1}',
        '{"seq":9007199254740992}',
        '{"seq":99999999999999999999999999}',
        '{"seq":1},{"seq":1}',
        '{"seq":2},{"seq":1}',
        '{"seq":1},{"seq":3},{"seq":2}',
        "null",
        "1",
        "[]",
        '{"seq":1},null',
    ],
)
def test_a_fault_of_seq_is_the_whole_body_s(mutations: str) -> None:
    """Missing, no integer, out of range or not rising strictly (SPEC 4)."""
    assert refused(push(f'"mutations":[{mutations}]'))


def test_seq_rises_from_1_to_the_largest_exact_integer() -> None:
    """With gaps, and to 2^53-1."""
    request = messages.decode_push(push('"mutations":[{"seq":1},{"seq":7},{"seq":9007199254740991}]'))
    assert [mutation.seq for mutation in request.mutations] == [1, 7, 2**53 - 1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"text"',
        b"{}",
        b"{",
        push() + b" x",
        push() + push(),
        b"\xef\xbb\xbf" + push(),
        push('"mutations":{}'),
        push('"mutations":null'),
        push('"mutation":[]'),
        push('"mutations":[],"schema":"3"'),
        push('"mutations":[],"schema":3.0'),
        push('"mutations":[],"schema":-1'),
        push('"mutations":[],"schema":1000000000'),
        push('"mutations":[],"client":null'),
        push('"mutations":[],"client":"6f9619ff8b864d01b42d00cf4fc964ff"'),
        push('"mutations":[],"client":"6f9619ff-8b86-4d01-b42d-00cf4fc964ff\\n"'),
        push('"mutations":[],"client":"6f9619ff-8b86-4d01-b42d-00cf4fc964fg"'),
        push("'mutations':[]"),
        push('"mutations":[],'),
        push('"mutations":[] /* none */'),
        push('"mutations":[{"seq":1,"fields":{"a":NaN}}]'),
        push('"mutations":[{"seq":1,"fields":{"a":Infinity}}]'),
        push('"mutations":[{"seq":1,"fields":{"a":01}}]'),
        push('"mutations":[{"seq":1,"fields":{"a":.5}}]'),
        push('"mutations":[{"seq":1,"fields":{"a":"\t"}}]'),
        push('"mutations":[{"seq":1,"fields":{"a":"\\x"}}]'),
    ],
)
def test_what_is_no_push(body: bytes) -> None:
    """Bad JSON or a wrong envelope; nothing of such a body takes effect (I18)."""
    assert refused(body)


@pytest.mark.parametrize("text", ["\\ud800", "\\udc00", "\\ud800\\ud800", "\\udc00\\ud800", "a\\ud83dz", "\ud800"])
@pytest.mark.parametrize(
    "place",
    ['[{"seq":1,"fields":{"a":"?"}}]', '[{"seq":1,"fields":{"?":1}}]', '[{"seq":1,"x":"?"}]', '[],"x":"?"', '[],"?":1'],
)
def test_lone_surrogates_are_refused_everywhere(text: str, place: str) -> None:
    """Escaped or raw, in values and keys, in what is read and in what is ignored."""
    assert refused(push(f'"mutations":{place}'.replace("?", text)))


def test_text_may_hold_nul_and_pairs() -> None:
    """NUL is the mutation's own fault, if it is one; a surrogate pair is one character."""
    request = messages.decode_push(push('"mutations":[{"seq":1,"fields":{"a":"\\u0000","b":"\\ud83c\\udff7"}}]'))
    assert request.mutations[0].fields == {"a": "\0", "b": "\U0001f3f7"}


@pytest.mark.parametrize(
    "body",
    [b"\xff" + push(), push().replace(b"schema", b"sch\xc3ma"), push('"mutations":[],"x":"')[:-1] + b'\xf0\x9f"}'],
)
def test_a_body_is_utf_8(body: bytes) -> None:
    """In every part of it."""
    assert refused(body)


def test_of_duplicate_keys_the_last_counts() -> None:
    """In the envelope, in a mutation and in its fields (SPEC: of duplicate keys the last counts, everywhere)."""
    request = messages.decode_push(
        push(
            '"mutations":[{"seq":9}],"schema":4,"mutations":[{"seq":1,"seq":2,"fields":{"a":1,"b":{"c":1,"c":2},"a":3}}]'
        )
    )
    assert request.schema == 4
    assert request.mutations == [Mutation(2, fields={"a": 3, "b": {"c": 2}})]


# ── nesting ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BRACKETS = ['"]"', '"["', '"{"', '"}"', '"[["', '"\\""', '"\\\\"', '"[\\"]"', '"]\\\\"', '"()"', '""']


def nested(depth: int, *beside: str) -> str:
    """JSON in which `depth` containers lie within each other, with texts on both sides of each."""
    before, after = "".join(f"{text}," for text in beside), "".join(f",{text}" for text in beside[::-1])
    value = "1"
    for level in range(depth):
        value = f"[{before}{value}{after}]" if level % 2 else f'{{"k{{":{value}}}'
    return value


def depth_of(text: str) -> int:
    """The nesting of a JSON text, by reading it."""

    def measure(value: Any) -> int:
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(measure, value), default=0) if isinstance(value, list) else 0

    return measure(json.loads(text))


def deep(text: str) -> bool:
    """Whether a JSON text is refused for its nesting."""
    try:
        messages.decode_json(text.encode())
    except RequestError as error:
        return "nested" in error.detail
    return False


@pytest.mark.parametrize(
    "beside", [(), *((text,) for text in BRACKETS), ('"]"', '"["'), ('"["', '"]"'), ('"\\\\"', '"]"')]
)
def test_nesting_ends_at_64(beside: tuple[str, ...]) -> None:
    """Exactly, whatever brackets, quotes and backslashes stand in texts."""
    for depth in (62, 63, 64, 65, 66, 300):
        text = nested(depth, *beside)
        assert depth_of(text) == depth
        assert deep(text) == (depth > 64)


@given(
    st.recursive(
        st.sampled_from([1, None, *map(json.loads, BRACKETS)]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["[", "}", '"', "\\", "k"]), inner),
    ),
    st.integers(55, 64),
)
def test_nesting_is_counted_as_it_is_read(value: Any, around: int) -> None:
    """Any value, within any number of containers."""
    text = "[" * around + json.dumps(value) + "]" * around
    assert deep(text) == (depth_of(text) > 64)


def test_nesting_counts_where_nobody_looks() -> None:
    """In members that are ignored as in those that are read; a push's own containers count too."""
    assert not refused(push(f'"mutations":[{{"seq":1,"fields":{nested(61)}}}]'))
    assert refused(push(f'"mutations":[{{"seq":1,"fields":{nested(62)}}}]'))
    assert not refused(push(f'"mutations":[],"x":{nested(63)}'))
    assert refused(push(f'"mutations":[],"x":{nested(64)}'))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 100_000, b"]" * 100, b'["' + b"\\" * 99_999, b'"[' * 50_000]
)
def test_hostile_brackets_are_refused(body: bytes) -> None:
    """Quickly, and as malformed."""
    with pytest.raises(RequestError):
        messages.decode_json(body)


# ── pulls ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pull(**more: Any) -> messages.PullRequest:
    """A pull with these members."""
    return messages.decode_pull(json.dumps({"client": CLIENT, "schema": 3, **more}).encode())


def test_a_pull_is_decoded() -> None:
    """With its defaults: everything readable, a thousand changes, no waiting."""
    request = pull()
    assert (request.watermark, request.scopes, request.limit, request.wait) == (None, None, 1_000, 0)
    request = pull(watermark={"user:42": "k3f9x2.17.0.3"}, scopes=["user:42"], limit=10_000, wait=25)
    assert (request.watermark, request.scopes) == ({"user:42": "k3f9x2.17.0.3"}, ["user:42"])
    assert (request.limit, request.wait) == (10_000, 25)
    assert pull(watermark=None, scopes=None, wait=0.5).wait == 0.5


@pytest.mark.parametrize(
    "more",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"limit": 1.5},
        {"limit": "1"},
        {"limit": None},
        {"limit": True},
        {"wait": -0.1},
        {"wait": 25.1},
        {"wait": "1"},
        {"wait": None},
        {"wait": True},
        {"watermark": []},
        {"watermark": {"user:42": 17}},
        {"watermark": {"user:42": None}},
        {"scopes": "user:42"},
        {"scopes": [1]},
        {"scopes": {}},
        {"schema": None},
        {"client": "me"},
    ],
)
def test_what_is_no_pull(more: dict[str, Any]) -> None:
    """Limit and wait out of range, and every wrong type (SPEC 5, 7)."""
    with pytest.raises(RequestError, match=r".") as error:
        pull(**more)
    assert error.value.status == 400


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────

FRAMES: list[dict[str, Any]] = [
    {"t": "hello", "token": "x", "client": CLIENT, "schema": 3, "watermark": {}},
    {
        "t": "hello",
        "token": "x",
        "client": CLIENT,
        "schema": 3,
        "watermark": {"user:1": "a.1.0.3"},
        "scopes": ["user:1"],
    },
    {"t": "auth", "token": "x"},
    {"t": "follow", "scopes": ["user:1"]},
    {"t": "follow", "scopes": [], "watermark": {"user:1": "a.1.0.3"}},
    {"t": "unfollow", "scopes": ["user:1"]},
    {"t": "push", "id": 1, "schema": 3, "mutations": [{"seq": 1, "op": "delete"}]},
    {"t": "push", "id": "one", "schema": 3, "mutations": []},
    {"t": "ping", "n": 7},
    {"t": "ping"},
    {"t": "join", "room": "workspace:7", "state": {"cursor": 1}},
    {"t": "leave", "room": "workspace:7"},
    {"t": "presence", "room": "workspace:7", "state": None},
    {"t": "broadcast", "room": "workspace:7", "event": "x", "payload": [1]},
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: str(frame["t"]))
def test_every_frame_of_a_client_is_decoded(frame: dict[str, Any]) -> None:
    """Its members come back as they were sent; unknown ones are ignored."""
    decoded = messages.decode_client_frame(json.dumps({**frame, "unknown": 1}))
    assert msgspec.to_builtins(decoded).items() >= frame.items() or frame["t"] == "push"


@pytest.mark.parametrize(
    "data",
    [
        "",
        "x",
        "{",
        "[]",
        "null",
        '"ping"',
        "{}",
        '{"n":1}',
        '{"t":null}',
        '{"t":1}',
        '{"t":["ping"]}',
        '{"T":"ping"}',
        '{"t":"ping"} x',
        '{"t":"ping","x":"\\ud800"}',
        '{"t":"ping","x":"\ud800"}',
        "[" * 10_000,
    ],
)
def test_what_is_no_frame(data: str) -> None:
    """Not JSON, or no text `t`: the connection closes with 4400."""
    with pytest.raises(NotAFrame):
        messages.decode_client_frame(data)


@pytest.mark.parametrize(
    "data",
    [
        '{"t":"dance"}',
        '{"t":""}',
        '{"t":"welcome"}',
        '{"t":"auth"}',
        '{"t":"auth","token":1}',
        '{"t":"follow","scopes":"user:1"}',
        '{"t":"hello","token":"x","client":"me","schema":3}',
        '{"t":"push","id":1,"schema":3}',
        '{"t":"push","id":1.5,"schema":3,"mutations":[]}',
        '{"t":"push","schema":3,"mutations":[]}',
        '{"t":"push","id":1,"schema":3,"mutations":[{"seq":2},{"seq":1}]}',
        '{"t":"ping","x":' + "[" * 64 + "]" * 64 + "}",
    ],
)
def test_a_frame_that_is_wrong_is_refused_alone(data: str) -> None:
    """A known one with wrong members, or an unknown `t`: the connection lives (I41)."""
    with pytest.raises(RequestError) as error:
        messages.decode_client_frame(data)
    assert error.value.code == "malformed"


# ── what the server writes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("digest", [None, "2-00017c3ad09e"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_run_written_as_bytes_is_the_run_that_is_read(digest: str | None, reset: bool) -> None:
    """In a pull's answer and in a `changes` frame alike."""
    change = ",".join(
        f'{{"entity":"notes","row":"r{n}","version":{n},"doc":{d}}}' for n, d in ((18, '{"id":1}'), (19, "null"))
    )
    members = messages.run_bytes(
        scope="user:auth0%7C7",
        after=17,
        to=19,
        head=20,
        watermark="k3f9x2.19.20.3",
        digest=digest,
        reset=reset,
        changes=change.encode(),
    )
    run = msgspec.json.decode(b"{%b}" % members, type=messages.Run)
    assert (run.scope, run.from_, run.to, run.head, run.watermark) == ("user:auth0%7C7", 17, 19, 20, "k3f9x2.19.20.3")
    assert (run.digest, run.reset) == (digest, reset)
    assert run.changes == [messages.Change("notes", "r18", 18, {"id": 1}), messages.Change("notes", "r19", 19, None)]
    frame = messages.decode_server_frame(b'{"t":"changes","clock":"c",%b}' % members)
    assert isinstance(frame, messages.Changes)
    assert (frame.from_, frame.changes, frame.reset) == (17, run.changes, reset)


def test_results_leave_out_what_they_do_not_say() -> None:
    """As the example of SPEC 4 has it."""
    response = messages.PushResponse(
        [
            messages.Result(41, "applied", scope="user:42", version=18),
            messages.Result(42, "superseded"),
            messages.Result(43, "rejected", error=messages.VerdictError("forbidden", "no")),
        ],
        "clock",
    )
    assert json.loads(messages.encode(response)) == {
        "results": [
            {"seq": 41, "status": "applied", "scope": "user:42", "version": 18},
            {"seq": 42, "status": "superseded"},
            {"seq": 43, "status": "rejected", "error": {"code": "forbidden", "message": "no", "field": None}},
        ],
        "clock": "clock",
    }


SERVER_FRAMES: list[Any] = [
    messages.Welcome("s", "ada", {"user:ada": 3}, [], "c", 25.0),
    messages.Behind("user:ada", 3),
    messages.ScopeAdded("workspace:7"),
    messages.ScopeRevoked("workspace:7"),
    messages.PushResult("one", [messages.Result(1, "applied", version=0)], "c"),
    messages.Authed(1_800_000_000),
    messages.ErrorFrame("malformed", "why", 7),
    messages.ErrorFrame("room_full", "why", room="workspace:7"),
    messages.Pong("c", 7),
    messages.Presence("workspace:7", members={"s": {"user": "ada", "state": None}}),
    messages.Presence("workspace:7", left=["s"]),
    messages.Broadcasted("workspace:7", {"session": "s", "user": "ada"}, "x", {"a": 1}),
]


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=lambda frame: type(frame).__name__)
def test_every_frame_of_the_server_is_read_as_it_was_written(frame: Any) -> None:
    """Both ends share one definition."""
    assert messages.decode_server_frame(messages.encode(frame)) == frame

"""Runs in the shape of an older schema number: rewritten where they differ, once for all who read them (SPEC 10)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark.store.base import ScopeState
from tidemark.sync.frames import FrameMaker
from tidemark.sync.shapes import Shapes
from tidemark_protocol.conversion import Conversions
from tidemark_protocol.schema import parse

DECLARATION = parse(
    """
    schema: 4
    oldest: 1
    entities:
      tasks:
        scope: user
        fields:
          title: {type: text}
          status: {type: enum, values: [todo, done]}
          data: {type: json, nullable: true}
          labels: {type: map}
      notes: {scope: user, fields: {title: {type: text}}}
    changes:
      2: {tasks: {rename: {name: label, tags: labels}}}
      4: {tasks: {rename: {label: title}, remove: [flag], values: {status: {open: todo, shut: done, closed: done}}}}
    """
)
SHAPES = Shapes(DECLARATION)
TASK = '{"entity":"tasks","row":"a","version":7,"doc":%s}'
NOTE = '{"entity":"notes","row":"b","version":8,"doc":{ "id":"b",  "title":"open" }}'
GONE = '{"entity":"tasks","row":"c","version":9,"doc":null}'
DOC = '{"id":"a","title":"t","status":"done","data":{"n":[1.50e3,12345678901234567890,"\\u00e9"]},"labels":{"title":1}}'


def changes(*items: str) -> bytes:
    """A run's changes as the feed has them."""
    return ",".join(items).encode()


@pytest.mark.parametrize("number", [4, 5, 999_999_999])
def test_the_present_number_gets_the_feed_s_own_bytes(number: int) -> None:
    """For a reader of the present number nothing is decoded: it gets the very same object."""
    feed = changes(TASK % DOC, NOTE)
    assert SHAPES.rewritten(number, feed) is feed
    assert SHAPES.rewritten(number, b"no JSON at all") == b"no JSON at all"


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_what_no_change_names_keeps_its_bytes(number: int) -> None:
    """Deletions, other entities, and a run without anything that differs go out as they are (I52)."""
    for feed in (changes(NOTE, GONE), changes(GONE), b""):
        assert SHAPES.rewritten(number, feed) is feed
    mixed = SHAPES.rewritten(number, changes(TASK % DOC, NOTE, GONE))
    assert mixed.endswith(changes("", NOTE, GONE))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, ("name", "shut", "tags")),
        (2, ("label", "shut", "labels")),
        (3, ("label", "shut", "labels")),
    ],
)
def test_documents_have_the_shape_of_the_number(number: int, expected: tuple[str, str, str]) -> None:
    """Names and texts are the older number's; values that are not mapped keep every byte (I52)."""
    name, status, tags = expected
    wanted = DOC.replace('"title":"t"', f'"{name}":"t"').replace('"labels":', f'"{tags}":')
    wanted = wanted.replace('"done"', f'"{status}"')
    assert SHAPES.rewritten(number, changes(TASK % DOC)) == (TASK % wanted).encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["open", "todo", "done"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["id", "title", "status", "labels", "data", "added", "created_at"])


@given(st.lists(st.none() | st.dictionaries(NAMES, VALUES), max_size=4), st.integers(1, 4))
def test_every_document_is_what_conversion_says(docs: list[dict[str, Any] | None], number: int) -> None:
    """Rewriting bytes comes to the same as converting each document (I52)."""
    feed = changes(*(TASK % json.dumps(doc) for doc in docs))
    translation = Conversions(DECLARATION).translation("tasks", number)
    wanted = [doc if doc is None or translation is None else translation.downward(doc) for doc in docs]
    found = json.loads(b"[%b]" % SHAPES.rewritten(number, feed))
    assert [change["doc"] for change in found] == wanted
    assert [list(change["doc"] or ()) for change in found] == [list(doc or ()) for doc in wanted]


def test_what_many_sockets_get_is_rewritten_once() -> None:
    """Of one commit or wake a frame is made once for each number, however many connections of it follow."""
    made: Counter[int] = Counter()

    def rewritten(number: int, found: bytes) -> bytes:
        made[number] += 1
        return SHAPES.rewritten(number, found)

    maker = FrameMaker(lambda: "e", lambda reading: reading, rewritten)
    batch = maker.batch(6, ScopeState("user:ada", head=7, live=1), changes(TASK % DOC))
    frames = [batch.frame(number) for number in (1, 4, 1, 4, 2, 1)]
    assert made == {1: 1, 2: 1, 4: 1}
    assert frames[0] is frames[2] is frames[5]
    docs = [json.loads(frame.body)["changes"][0]["doc"] for frame in frames if frame is not None]
    assert [("name" in doc, "title" in doc) for doc in docs[:2]] == [(True, False), (False, True)]

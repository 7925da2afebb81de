"""Names that travel have one spelling (SPEC 1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.model import Entity, Field, Key, ScopeColumn
from tidemark_protocol.rows import (
    ENTITY,
    ROW,
    SCOPE,
    format_scope,
    id_problem,
    key_values,
    parse_scope,
    row_problem,
    scope_id,
    user_scope,
)

UUID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def keyed(key: Key) -> Entity:
    """An entity with this key."""
    return Entity("things", "things", ScopeColumn("user", "user_id"), {"name": Field("name", "text")}, key=key)


TEXT = keyed(Key(types=("text",)))
INTEGER = keyed(Key(types=("integer",)))
LINE = keyed(Key(("order_key", "line_number"), ("text", "integer")))


@pytest.mark.parametrize("name", ["a", "a" * 63, "user_categories", "a0_"])
def test_entity_names(name: str) -> None:
    """A lower case letter and up to 62 of a-z 0-9 _ name an entity."""
    assert ENTITY.fullmatch(name)


@pytest.mark.parametrize("name", ["", "A", "_a", "0a", "a" * 64, "a-b", "a\n", "é"])
def test_what_is_no_entity_name(name: str) -> None:
    """Anything else is none, a trailing newline included."""
    assert ENTITY.fullmatch(name) is None


@pytest.mark.parametrize(
    ("entity", "row"),
    [
        (keyed(Key()), UUID),
        (TEXT, "a"),
        (TEXT, "A.z_~:@-9"),
        (TEXT, "x" * 128),
        (INTEGER, "0"),
        (INTEGER, "-1"),
        (INTEGER, "9223372036854775807"),
        (INTEGER, "-9223372036854775808"),
        (LINE, "o-1:42"),
    ],
)
def test_rows_that_can_be(entity: Entity, row: str) -> None:
    """A row in the canonical spelling of its key has no problem."""
    assert row_problem(entity, row) is None
    assert ":".join(map(str, key_values(entity, row))) == row


@pytest.mark.parametrize(
    ("entity", "row"),
    [
        (keyed(Key()), UUID.upper()),
        (keyed(Key()), UUID.replace("-", "")),
        (keyed(Key()), UUID + "\n"),
        (keyed(Key()), "x"),
        (TEXT, ""),
        (TEXT, "x" * 129),
        (TEXT, "a b"),
        (TEXT, "a/b"),
        (TEXT, "é"),
        (TEXT, "a\n"),
        (TEXT, "a\0"),
        (TEXT, None),
        (TEXT, 7),
        (TEXT, ["a"]),
        (INTEGER, "-0"),
        (INTEGER, "007"),
        (INTEGER, "1.0"),
        (INTEGER, "9223372036854775808"),
        (INTEGER, "-9223372036854775809"),
        (INTEGER, "9" * 100),
        (LINE, "o-1"),
        (LINE, "o-1:"),
        (LINE, ":1"),
        (LINE, "o:1:2"),
        (LINE, "o-1:x"),
    ],
)
def test_rows_that_cannot_be(entity: Entity, row: object) -> None:
    """Everything else has a problem that says what a key looks like (I1)."""
    assert row_problem(entity, row)


def test_scope_ids_are_held_by_typed_columns() -> None:
    """An id fits a uuid or integer scope column only in its canonical spelling."""
    assert id_problem("text", "anything") is None
    assert id_problem("uuid", UUID) is None
    assert id_problem("uuid", UUID.upper())
    assert id_problem("integer", "12") is None
    assert id_problem("integer", "012")


@pytest.mark.parametrize(
    ("sub", "scope"),
    [
        ("42", "user:42"),
        ("auth0|7", "user:auth0%7C7"),
        ("ä b", "user:%C3%A4%20b"),
        ("a%b", "user:a%25b"),
        ("~._-", "user:~._-"),
    ],
)
def test_a_users_own_scope(sub: str, scope: str) -> None:
    """`user:` and the token's sub, percent-encoded where needed."""
    assert user_scope(sub) == scope
    assert scope_id(scope) == sub


@pytest.mark.parametrize("sub", ["", "x" * 129, "é" * 65, "a\0", "\ud800"])
def test_subs_that_do_not_fit(sub: str) -> None:
    """Empty, above 128 units, NUL and lone surrogates are a ValueError."""
    with pytest.raises(ValueError, match="id"):
        user_scope(sub)


@given(
    st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=32),
)
def test_scopes_round_trip(kind: str, decoded: str) -> None:
    """What format_scope spells, parse_scope reads back."""
    scope = format_scope(kind, decoded)
    assert SCOPE.fullmatch(scope)
    assert parse_scope(scope) == (kind, decoded)


@given(st.from_regex(SCOPE, fullmatch=True))
def test_a_scope_has_one_spelling(text: str) -> None:
    """Every text that parse_scope takes is the very one that format_scope spells (I1)."""
    try:
        kind, decoded = parse_scope(text)
    except ValueError:
        return
    assert format_scope(kind, decoded) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user",
        "user:",
        ":1",
        "User:1",
        "user:1\n",
        "user:a b",
        "user:%7c",
        "user:%4",
        "user:%41",
        "user:%7E",
        "user:%FF",
        "user:%C3",
        "user:%00",
        "user:%ED%A0%80",
        "user:%C0%AF",
        "1a:1",
        "a" * 33 + ":1",
        "user:" + "x" * 129,
        "user:" + "%7C" * 129,
        "user:a:b",
    ],
)
def test_texts_that_are_no_scope(text: str) -> None:
    """A second spelling, a wrong escape, bytes that are not UTF-8, NUL: a ValueError."""
    with pytest.raises(ValueError, match="scope"):
        parse_scope(text)


def test_units_are_counted_not_characters() -> None:
    """128 escapes are 128 units."""
    assert parse_scope("user:" + "%7C" * 128) == ("user", "|" * 128)
    assert user_scope("é" * 64) == "user:" + "%C3%A9" * 64


@given(st.from_regex(ROW, fullmatch=True))
def test_any_row_text_is_a_text_key(row: str) -> None:
    """A text key takes whatever the pattern of SPEC 1 takes."""
    assert row_problem(TEXT, row) is None

"""The declared tables: what can be asked of them while a transaction runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.writing import delete, put, uuid, write
from tidemark.store.base import Store, Transaction

W = "workspace:7"
SHOP = "shop:7"

VALUES: dict[str, list[Any]] = {
    "word": ["one", "two", "", " one", "ONE", "öne ☃ 😀", 'it\'s "quoted" \\', "%_", "007", "1e3", "null", "{a,b}"],
    "count": [0, 1, -1, 2**53 - 1, -(2**53) + 1],
    "ratio": [0.0, 0.1, -2.5, 1e-9, 1.7976931348623157e308, 3.0],
    "price": ["0.00", "12.50", "-12.50", "999999999999.99", "0.01"],
    "open": [True, False],
    "day": ["2026-02-28", "0001-01-01", "9999-12-31"],
    "hour": ["00:00:00", "23:59:59", "12:30:00.000001", "12:30:00.100000"],
    "moment": ["2026-01-02T03:04:05.000006Z", "0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"],
    "token": ["00000000-0000-4000-8000-0000000000ff", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "state": ["todo", "doing", "done"],
}


async def holders(store: Store, scope: str, entity: str, fields: tuple[str, ...], *values: tuple[Any, ...]) -> object:
    """(values, row) of those that hold them, in some order."""

    async def body(transaction: Transaction) -> object:
        return sorted(await transaction.holders(scope, entity, fields, set(values)), key=repr)

    return await store.transact(body)


async def referring(store: Store, field: str, *targets: str, scope: str = SHOP) -> object:
    """(target, row) of the links that name any of the targets."""

    async def body(transaction: Transaction) -> object:
        return sorted(await transaction.referring(scope, "links", field, set(targets)))

    return await store.transact(body)


@pytest.mark.parametrize("field", VALUES)
async def test_values_of_every_type_are_found_as_they_were_saved(store: Store, field: str) -> None:
    """`holders` takes and gives canonical values, to the last digit and of the same type."""
    values = VALUES[field]
    rows = [put(W, "samples", uuid(n), **{field: value}) for n, value in enumerate(values)]
    await write(store, *rows, put(W, "samples", uuid(99)))
    found = await holders(store, W, "samples", (field,), *((value,) for value in values))
    expected = sorted((((value,), uuid(n)) for n, value in enumerate(values)), key=repr)
    assert repr(found) == repr(expected)
    for number, value in enumerate(values):
        assert await holders(store, W, "samples", (field,), (value,)) == [((value,), uuid(number))]


async def test_several_fields_are_compared_together(store: Store) -> None:
    """A row holds a tuple when all of its values agree."""
    await write(
        store,
        put(W, "samples", uuid(1), token=uuid(8), count=1, day="2026-01-01"),
        put(W, "samples", uuid(2), token=uuid(8), count=2, day="2026-01-01"),
        put(W, "samples", uuid(3), token=uuid(9), count=1, day="2026-01-01"),
    )
    fields = ("token", "count", "day")
    wanted = [(uuid(8), 1, "2026-01-01"), (uuid(9), 2, "2026-01-01"), (uuid(9), 1, "2026-01-01")]
    assert await holders(store, W, "samples", fields, *wanted) == [(wanted[0], uuid(1)), (wanted[2], uuid(3))]


async def test_every_holder_is_named(store: Store) -> None:
    """Where nothing keeps values unique, all rows that hold them come."""
    await write(store, *(put(W, "samples", uuid(n), word="same") for n in range(3)))
    assert await holders(store, W, "samples", ("word",), ("same",)) == [(("same",), uuid(n)) for n in range(3)]


async def test_null_is_held_by_nobody(store: Store) -> None:
    """As uniqueness has it."""
    await write(store, put(W, "samples", uuid(1)))
    assert await holders(store, W, "samples", ("word",), ("x",)) == []


@pytest.mark.parametrize("scope", ["user:ada", "user:auth0%7C7", "user:%C3%A4%20b", "user:7", "user:007"])
async def test_tables_hold_the_decoded_scope(store: Store, scope: str) -> None:
    """Scopes whose ids are escaped, and those that look like numbers, find their own rows alone."""
    await write(store, put(scope, "notes", uuid(1), title="x"), put("user:other", "notes", uuid(2), title="x"))
    assert await holders(store, scope, "notes", ("title",), ("x",)) == [(("x",), uuid(1))]


@pytest.mark.parametrize(
    ("field", "targets"),
    [
        ("slug", ["one", "two", "a.b~c:d@e-f", "007"]),
        ("number", ["0", "-5", "9007199254740991"]),
        ("link", [uuid(1), uuid(2), uuid(3)]),
    ],
)
async def test_referring_rows_are_found_by_key(store: Store, field: str, targets: list[str]) -> None:
    """Targets are named as rows are, whatever the type of the field that refers to them."""
    values: list[Any] = [int(target) if field == "number" else target for target in targets]
    await write(store, *(put(SHOP, "links", uuid(10 + n), **{field: value}) for n, value in enumerate(values)))
    await write(store, put(SHOP, "links", uuid(20), **{field: values[0]}), put(SHOP, "links", uuid(21)))
    assert await referring(store, field, targets[0]) == [(targets[0], uuid(10)), (targets[0], uuid(20))]
    everyone = [(target, uuid(10 + n)) for n, target in enumerate(targets)] + [(targets[0], uuid(20))]
    assert await referring(store, field, *targets) == sorted(everyone)


async def test_referring_looks_at_one_scope(store: Store) -> None:
    """Rows of another scope, and rows that are gone, refer to nothing here."""
    await write(store, put(SHOP, "links", uuid(1), slug="x"), put("shop:8", "links", uuid(2), slug="x"))
    await write(store, put(SHOP, "links", uuid(3), slug="x"))
    await write(store, delete(SHOP, "links", uuid(3)), put(SHOP, "links", uuid(1), slug="y"))
    assert await referring(store, "slug", "x") == []
    assert await referring(store, "slug", "x", scope="shop:8") == [("x", uuid(2))]


async def test_keys_of_every_kind_name_their_rows(store: Store) -> None:
    """Text, integer and joined keys come back as they travel."""
    await write(
        store,
        put(SHOP, "slugs", "a.b~c:d@e-f", title="x"),
        put(SHOP, "numbers", "-42", title="x"),
        put(SHOP, "lines", "o-1:7", title="x"),
        put(SHOP, "lines", "o-1:8", title="y"),
    )
    for entity, row in (("slugs", "a.b~c:d@e-f"), ("numbers", "-42"), ("lines", "o-1:7")):
        assert await holders(store, SHOP, entity, ("title",), ("x",)) == [(("x",), row)]
    for entity, row in (("numbers", "-42"), ("lines", "o-1:7")):
        await write(store, put(SHOP, entity, row, title="z"))
        assert await holders(store, SHOP, entity, ("title",), ("z",)) == [(("z",), row)]
    await write(
        store, delete(SHOP, "lines", "o-1:7"), delete(SHOP, "numbers", "-42"), delete(SHOP, "slugs", "a.b~c:d@e-f")
    )
    for entity in ("slugs", "numbers", "lines"):
        assert await holders(store, SHOP, entity, ("title",), ("x",)) == []
    assert await holders(store, SHOP, "lines", ("title",), ("y",)) == [(("y",), "o-1:8")]


async def test_json_and_maps_are_saved(store: Store) -> None:
    """Values of any shape pass into the table beside those that can be looked for."""
    data = {"a": [1, 2.5, True, None, {"b": "ä☃😀"}], "": {}, "q'\"\\": []}
    await write(store, put(W, "samples", uuid(1), word="x", data=data, labels={"k/~": {"deep": [[]]}, "n": 0}))
    shapes: list[Any] = [[], "text", False, 0]
    await write(store, *(put(W, "samples", uuid(n), word="x", data=value) for n, value in enumerate(shapes, 2)))
    found = await holders(store, W, "samples", ("word",), ("x",))
    assert found == [(("x",), uuid(n)) for n in range(1, 6)]

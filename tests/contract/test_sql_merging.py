"""Clients and writers in SQL on the same rows: who wins, what waits, what is refused (SPEC sections 3, 4 and 10)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.client import Json, assert_problem, code, reading, wall
from tests.contract.replica import Replica
from tests.contract.shop import Shop, Sql, eventually, later


def outcome(result: Json) -> tuple[str, str | None]:
    """A result's status and code."""
    return result["status"], code(result)


def told(results: list[Json]) -> list[tuple[str, str | None]]:
    """Statuses and codes."""
    return [outcome(result) for result in results]


HELD_UP = ("retry", "unavailable")


# Whose write is the later


@pytest.mark.parametrize("drained", [True, False])
def test_an_edit_before_the_sql_write_loses_and_one_after_wins(shop: Shop, drained: bool) -> None:
    """Of one column the later of a client and SQL wins, pushed before or after the service has looked (I53)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start")
    shop.arrives(ada, row, scope)
    later()
    early = ada.patch("orders", row, customer="early", status="shipped", scope=scope)
    later()
    shop.update(row, customer="'sql'")
    later()
    late = ada.patch("orders", row, total="7.00", scope=scope)
    if drained:
        shop.drained()
    first, second = ada.push(early, late)
    assert (first["status"], first["superseded_fields"]) == ("applied", ["customer"])
    assert second["status"] == "applied"
    shop.arrives(ada, row, scope, customer="sql", status="shipped", total="7.00")
    (again,) = ada.push(ada.patch("orders", row, customer="late", scope=scope))
    assert again["status"] == "applied"
    shop.drained()
    assert shop.stored(row, "customer", "status") == ("late", "shipped")
    shop.arrives(ada, row, scope, customer="late")


def test_an_edit_that_loses_wholly_is_superseded(shop: Shop) -> None:
    """A patch all of whose columns SQL has written since is `superseded`, and the table keeps SQL's values (I53)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start")
    shop.arrives(ada, row, scope)
    later()
    early = ada.patch("orders", row, customer="early", scope=scope)
    later()
    shop.update(row, customer="'sql'")
    (result,) = ada.push(early)
    assert result["status"] == "superseded"
    assert shop.stored(row, "customer") == ("sql",)
    assert any(event["outcome"] == "superseded" and event["won"] for event in ada.events(row=row, scope=scope))


def test_what_sql_could_see_it_overwrites(shop: Shop) -> None:
    """SQL wins over a value that stood in the table, though the client's clock ran ahead (SPEC 10)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start")
    shop.arrives(ada, row, scope)
    ahead = reading(wall() + 30_000, 0, ada.clock.node)
    ada.apply(ada.patch("orders", row, at=ahead, customer="ahead", scope=scope))
    shop.update(row, customer="'sql'")
    shop.arrives(ada, row, scope, customer="sql")
    ada.pull()
    ada.apply(ada.patch("orders", row, customer="after", scope=scope))
    shop.arrives(ada, row, scope, customer="after")


@pytest.mark.parametrize(("field", "other"), [("labels", {"c": 3}), ("details", [3])])
def test_a_document_column_is_replaced_whole(shop: Shop, field: str, other: Any) -> None:
    """A map or json column that SQL writes is replaced as a whole: earlier writes of its keys lose, later ones stay."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, labels="""'{"a": 1, "b": 2}'""", details="'[1, 2]'")
    shop.arrives(ada, row, scope)
    later()
    path, value = ("labels/early", 1) if field == "labels" else ("details", [0])
    early = ada.patch("orders", row, fields={path: value, "number": f"n{row}"}, scope=scope)
    later()
    shop.update(row, **{field: """'{"c": 3}'""" if field == "labels" else "'[3]'"})
    (result,) = ada.push(early)
    assert (result["status"], result["superseded_fields"]) == ("applied", [path])
    shop.arrives(ada, row, scope, number=f"n{row}", **{field: other})
    if field == "labels":
        later()
        ada.apply(ada.patch("orders", row, fields={"labels/late": True}, scope=scope))
        shop.arrives(ada, row, scope, labels={"c": 3, "late": True})


def test_a_delete_in_sql_beats_edits_and_a_put_revives(shop: Shop) -> None:
    """After a DELETE in SQL patches are superseded as of a deleted row; a later put makes it anew, in the table too."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start", number="'n1'", remark="'kept by the shop'")
    shop.arrives(ada, row, scope)
    later()
    earlier = ada.put("orders", row, customer="earlier", scope=scope)
    later()
    shop.delete(row)
    (put,) = ada.push(earlier)
    assert put["status"] == "superseded"
    (patch,) = ada.push(ada.patch("orders", row, customer="late", scope=scope))
    assert (patch["status"], patch["reason"]) == ("superseded", "deleted")
    shop.goes(ada, row, scope)
    ada.apply(ada.put("orders", row, customer="again", scope=scope))
    shop.arrives(ada, row, scope, customer="again", number=None)
    shop.drained()
    assert shop.stored(row, "customer", "remark") == ("again", "own")


def test_a_delete_of_a_row_that_sql_changed(shop: Shop) -> None:
    """A client's delete made before SQL's change of the row still deletes it; SQL's next insert is a new row."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start")
    shop.arrives(ada, row, scope)
    later()
    gone = ada.delete("orders", row, scope=scope)
    later()
    shop.update(row, customer="'sql'")
    (result,) = ada.push(gone)
    assert result["status"] == "applied"
    shop.drained()
    assert (ada.doc("orders", row, scope), shop.stored(row, "customer")) == (None, None)
    (event,) = [event for event in ada.events(row=row, scope=scope) if event["op"] == "delete"]
    assert event["overwrote"]["customer"] == "sql"
    shop.sql.run(f"INSERT INTO shop_orders (order_key, tenant_id, customer) VALUES ({row}, '{tenant}', 'new')")
    shop.arrives(ada, row, scope, customer="new")


def test_a_put_of_a_key_that_sql_has_inserted(shop: Shop) -> None:
    """A later put under a key that SQL made meanwhile replaces the row, an earlier one loses to it whole (I53)."""
    ada, scope, tenant = shop.workspace()
    low, high = str(3 * 10**9 + wall() % 10**9 * 10), str(3 * 10**9 + wall() % 10**9 * 10 + 1)
    before = ada.put("orders", low, customer="client", scope=scope)
    later()
    for row in (low, high):
        shop.sql.run(f"INSERT INTO shop_orders (order_key, tenant_id, customer) VALUES ({row}, '{tenant}', 'sql')")
    later()
    after = ada.put("orders", high, customer="client", scope=scope)
    assert told(ada.push(before, after)) == [("superseded", None), ("applied", None)]
    shop.drained()
    held = {row: doc["customer"] for row, doc in ada.docs("orders", scope).items()}
    assert held == {low: "sql", high: "client"}
    assert (shop.stored(low, "customer"), shop.stored(high, "customer")) == (("sql",), ("client",))


# Replay


def test_replay_around_sql_writes(shop: Shop) -> None:
    """A push sent again before and after SQL writes its rows has no second effect and is not refused (I8, I23)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant)
    later()
    put = ada.put("orders", row, customer="client", number="n", scope=scope)
    patch = ada.patch("orders", row, status="shipped", scope=scope)
    ada.apply(put, patch)
    assert [result["status"] for result in ada.push(put, patch)] == ["applied", "applied"]
    later()
    shop.update(row, status="'paid'", customer="'sql'")
    assert [result["status"] for result in ada.push(put, patch)] == ["applied", "superseded"]
    shop.delete(row)
    for _ in range(2):
        assert {result["status"] for result in ada.push(put, patch)} <= {"applied", "superseded"}
    shop.drained()
    assert shop.stored(row, "customer") is None
    assert ada.doc("orders", row, scope) is None


def test_first_verdicts_stand_whatever_sql_did_since(shop: Shop) -> None:
    """What was applied is never refused and what was rejected is rejected again, though SQL changed all (I23, I24)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, status="'paid'")
    shop.arrives(ada, row, scope)
    holder = ada.put("holders", order_key=int(row), scope=scope)
    ada.apply(holder)
    refused = [ada.delete("orders", row, scope=scope), ada.put("holders", order_key=int(row) + 10**12, scope=scope)]
    verdicts = ada.push(*refused)
    assert told(verdicts) == [("rejected", "ref_in_use"), ("rejected", "ref_missing")]
    shop.sql.run(f"DELETE FROM holders WHERE order_key = {row}")
    shop.update(row, status="'open'")
    missing = str(int(row) + 10**12)
    shop.sql.run(f"INSERT INTO shop_orders (order_key, tenant_id, customer) VALUES ({missing}, '{tenant}', 'x')")
    shop.drained()
    assert told(ada.push(*refused)) == told(verdicts)
    (again,) = ada.push(holder)
    assert again["status"] in ("applied", "superseded")
    ada.apply(ada.delete("orders", row, scope=scope))


def test_other_content_under_a_used_reading(shop: Shop) -> None:
    """A reading used again for other content is `clock_reused`, after SQL wrote another column as before (SPEC 4)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant)
    shop.arrives(ada, row, scope)
    patch = ada.patch("orders", row, customer="client", scope=scope)
    ada.apply(patch)
    shop.update(row, status="'shipped'")
    (result,) = ada.push({**patch, "fields": {"customer": "other"}})
    assert outcome(result) == ("rejected", "clock_reused")
    shop.arrives(ada, row, scope, customer="client", status="shipped")


# Open transactions


@contextmanager
def open_transaction(shop: Shop) -> Iterator[Sql]:
    """A session with an open transaction."""
    with shop.session() as sql:
        sql.begin()
        yield sql


HOLDING_ROWS = pytest.mark.databases("postgresql", "mariadb")
"""A transaction of SQLite holds the whole file."""


@HOLDING_ROWS
def test_a_group_waits_whole_for_a_held_row(shop: Shop) -> None:
    """A group with a held row waits whole, with what follows it; other pushes pass, and then it does (I13, I54)."""
    ada, scope, tenant = shop.workspace()
    bob = ada.again()
    held, free, other = (shop.insert(tenant, "start") for _ in range(3))
    shop.arrives(ada, other, scope)
    shop.drained()
    later()
    early = ada.patch("orders", free, customer="group", group="g", scope=scope)
    queue = [
        ada.patch("orders", other, customer="first", scope=scope),
        early,
        ada.patch("orders", held, customer="group", group="g", scope=scope),
        ada.patch("orders", other, customer="behind", scope=scope),
    ]
    with open_transaction(shop) as sql:
        shop.update(held, sql, status="'shipped'")
        assert told(ada.push(*queue)) == [("applied", None), HELD_UP, HELD_UP, HELD_UP]
        assert ada.doc("orders", free, scope)["customer"] == "start"  # type: ignore[index]
        bob.apply(bob.patch("orders", free, total="9.00", scope=scope))
        bob.apply(bob.put("orders", str(int(held) + 4 * 10**9), customer="bob", scope=scope))
        assert told(bob.push(bob.delete("orders", held, scope=scope))) == [HELD_UP]
        sql.commit()
    assert told(ada.push(*queue)) == [("applied", None)] * 4
    shop.arrives(ada, held, scope, customer="group", status="shipped")
    shop.arrives(ada, free, scope, customer="group", total="9.00")
    shop.arrives(ada, other, scope, customer="behind")


@HOLDING_ROWS
@pytest.mark.parametrize("undone", [False, True])
def test_edits_of_a_held_row_are_judged_by_the_statement(shop: Shop, undone: bool) -> None:
    """An edit before a statement loses to it once that commits, one made while it was open wins; undone, both stay."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start")
    shop.arrives(ada, row, scope)
    shop.drained()
    later()
    early = ada.patch("orders", row, customer="early", status="shipped", scope=scope)
    later()
    with open_transaction(shop) as sql:
        shop.update(row, sql, customer="'sql'", total="5")
        later()
        late = ada.patch("orders", row, total="8.00", scope=scope)
        assert told(ada.push(early, late)) == [HELD_UP, HELD_UP]
        assert ada.doc("orders", row, scope)["customer"] == "start"  # type: ignore[index]
        sql.rollback() if undone else sql.commit()
    results = ada.push(early, late)
    assert [result["status"] for result in results] == ["applied", "applied"]
    assert results[0].get("superseded_fields") == (None if undone else ["customer"])
    shop.arrives(ada, row, scope, customer="early" if undone else "sql", status="shipped", total="8.00")
    shop.drained()
    assert shop.stored(row, "customer", "status") == ("early" if undone else "sql", "shipped")


@HOLDING_ROWS
def test_an_uncommitted_key_holds_up_its_put_alone(shop: Shop) -> None:
    """A put of a key that SQL has inserted and not committed waits; then it merges, or finds the key taken (I54)."""
    ada, scope, tenant = shop.workspace()
    bob, elsewhere, _ = shop.workspace()
    with open_transaction(shop) as sql:
        row = shop.insert(tenant, "sql", sql, status="'paid'")
        later()
        mine = ada.put("orders", row, customer="client", scope=scope)
        taken = bob.put("orders", row, customer="bob", scope=elsewhere)
        assert told(ada.push(mine)) == told(bob.push(taken)) == [HELD_UP]
        bob.apply(bob.put("orders", str(int(row) + 5 * 10**9), customer="bob", scope=elsewhere))
        sql.commit()
    assert told(bob.push(taken)) == [("rejected", "row_taken")]
    assert told(ada.push(mine)) == [("applied", None)]
    shop.arrives(ada, row, scope, customer="client", status="open")
    shop.drained()
    assert shop.stored(row, "customer", "remark") == ("client", "own")


@HOLDING_ROWS
@pytest.mark.parametrize("undone", [False, True])
def test_an_uncommitted_unique_value_holds_up_who_wants_it(shop: Shop, undone: bool) -> None:
    """A write of a unique value that SQL has taken and not committed waits; then it is refused, or passes (I54)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant)
    shop.arrives(ada, row, scope)
    shop.drained()
    with open_transaction(shop) as sql:
        shop.insert(tenant, "sql", sql, number="'wanted'")
        wants = ada.patch("orders", row, number="wanted", scope=scope)
        assert told(ada.push(wants)) == [HELD_UP]
        ada.apply(ada.patch("orders", row, number="another", scope=scope))
        sql.rollback() if undone else sql.commit()
    again = ada.patch("orders", row, number="wanted", scope=scope)
    assert told(ada.push(again)) == [("applied", None) if undone else ("rejected", "unique_violation")]


@pytest.mark.databases("sqlite")
def test_sqlite_holds_up_every_write_and_no_reading(shop: Shop) -> None:
    """On SQLite an open write transaction puts off all writes in every scope, not reading, and loses none (I54)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "start")
    shop.arrives(ada, row, scope)
    shop.drained()
    later()
    queue = [ada.put("notes", title="mine"), ada.patch("orders", row, customer="early", status="shipped", scope=scope)]
    later()
    with open_transaction(shop) as sql:
        shop.update(row, sql, customer="'sql'", total="5")
        later()
        queue.append(ada.patch("orders", row, total="8.00", scope=scope))
        assert_problem(ada.post("/sync/push", ada.envelope(queue)), 503, "unavailable")
        assert ada.docs().keys() == {row}
        sql.commit()
    assert told(ada.push(*queue)) == [("applied", None)] * 3
    shop.arrives(ada, row, scope, customer="sql", status="shipped", total="8.00")


# References, uniqueness, rules


def test_what_refers_to_a_row_deleted_in_sql_follows_its_on_delete(shop: Shop) -> None:
    """A DELETE in SQL cascades, sets null or keeps as declared, in tables too; `restrict` counts as `keep` (I53)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant)
    shop.arrives(ada, row, scope)
    number = int(row)
    line = f"{row}:1"
    holder, hint, trace = (ada.put(name, order_key=number, scope=scope) for name in ("holders", "hints", "traces"))
    ada.apply(ada.put("lines", line, order_key=number, quantity=2, scope=scope), holder, hint, trace)
    shop.delete(row)
    eventually(lambda: ada.doc("lines", line, scope) is None)
    shop.drained()
    docs = ada.docs(scope=scope)
    assert docs.keys() == {holder["row"], hint["row"], trace["row"]}
    assert [docs[name["row"]]["order_key"] for name in (holder, hint, trace)] == [number, None, number]
    assert shop.sql.run(f"SELECT count(*) FROM shop_lines WHERE invoice = {row}") == [(0,)]
    assert shop.sql.run(f"SELECT order_key FROM hints WHERE workspace_id = '{tenant}'") == [(None,)]
    by = {event["entity"]: event["by"] for event in ada.events(scope=scope, limit=10) if event["by"]}
    assert by == {"orders": "sql", "lines": "cascade", "hints": "set_null"}


def test_references_are_asked_of_clients_alone(shop: Shop) -> None:
    """SQL may leave a reference that names nothing; a client's is `ref_missing`, other fields are writable (I21)."""
    ada, scope, tenant = shop.workspace()
    nowhere = 7 * 10**9 + wall() % 10**9
    invoice = nowhere
    shop.sql.run(
        "INSERT INTO shop_lines (invoice, line, tenant_id, order_key, quantity) "
        f"VALUES ({invoice}, 1, '{tenant}', {nowhere}, 1)"
    )
    eventually(lambda: ada.doc("lines", f"{invoice}:1", scope))
    results = ada.push(
        ada.put("lines", f"{invoice}:2", order_key=nowhere, quantity=1, scope=scope),
        ada.patch("lines", f"{invoice}:1", order_key=nowhere + 1, scope=scope),
        ada.patch("lines", f"{invoice}:1", quantity=5, scope=scope),
    )
    assert told(results) == [("rejected", "ref_missing"), ("rejected", "ref_missing"), ("applied", None)]
    shop.sql.run(f"INSERT INTO shop_orders (order_key, tenant_id, customer) VALUES ({nowhere}, '{tenant}', 'here')")
    shop.drained()
    ada.apply(ada.put("lines", f"{invoice}:3", order_key=nowhere, quantity=1, scope=scope))
    ada.apply(ada.put("holders", order_key=nowhere, scope=scope))
    assert told(ada.push(ada.delete("orders", str(nowhere), scope=scope))) == [("rejected", "ref_in_use")]


def test_rules_are_asked_of_clients_alone(shop: Shop) -> None:
    """A rule refuses a client what SQL does freely, on the values that SQL has written (SPEC 10)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant)
    shop.arrives(ada, row, scope)
    shop.update(row, status="'paid'")
    results = ada.push(ada.delete("orders", row, scope=scope), ada.patch("orders", row, customer="nobody", scope=scope))
    assert told(results) == [("rejected", "rule")] * 2
    shop.update(row, customer="'nobody'")
    shop.arrives(ada, row, scope, customer="nobody", status="paid")
    shop.delete(row)
    shop.goes(ada, row, scope)


def test_unique_values_between_sql_and_clients(shop: Shop) -> None:
    """A value that SQL's row holds is refused to a client in that scope and no other, until SQL gives it up (I21)."""
    ada, scope, tenant = shop.workspace()
    bob, elsewhere, _ = shop.workspace()
    row = shop.insert(tenant, number="'n1'")
    shop.drained()
    mine, theirs = str(8 * 10**9 + int(row)), str(9 * 10**9 + int(row))
    (refused,) = ada.push(ada.put("orders", mine, customer="a", number="n1", scope=scope))
    assert outcome(refused) == ("rejected", "unique_violation")
    bob.apply(bob.put("orders", theirs, customer="b", number="n1", scope=elsewhere))
    shop.update(row, number="'n2'")
    shop.drained()
    ada.apply(ada.put("orders", mine, customer="a", number="n1", scope=scope))
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        shop.update(row, number="'n1'")
    ada.apply(ada.delete("orders", mine, scope=scope))
    shop.update(row, number="'n1'")
    shop.arrives(ada, row, scope, number="n1")


def test_values_that_change_hands_in_one_transaction(shop: Shop) -> None:
    """Unique values that SQL passes round between rows arrive, and a client may take the one set free (I53)."""
    ada, scope, tenant = shop.workspace()
    first, second = shop.insert(tenant, number="'one'"), shop.insert(tenant, number="'two'")
    shop.arrives(ada, second, scope)
    shop.sql.begin()
    shop.update(first, number="NULL")
    shop.update(second, number="'one'")
    shop.update(first, number="'two'")
    shop.sql.commit()
    shop.arrives(ada, first, scope, number="two")
    shop.arrives(ada, second, scope, number="one")
    replica = Replica()
    replica.pull(ada)
    assert {doc["number"] for doc in replica.docs(scope).values()} == {"one", "two"}


def test_what_the_table_refuses_is_refused_alone(shop: Shop) -> None:
    """A client's write against a constraint of the shop's own is rejected, its neighbours are applied (I22)."""
    ada, scope, _ = shop.workspace()
    constraint = "ALTER TABLE shop_lines ADD CHECK (quantity <> 1313)"
    if shop.dialect == "sqlite":
        constraint = (
            "CREATE TRIGGER no_1313 BEFORE INSERT ON shop_lines WHEN new.quantity = 1313 "
            "BEGIN SELECT raise(ABORT, 'no 1313'); END"
        )
    shop.sql.run(constraint)
    invoice = wall()
    results = ada.push(
        *(ada.put("lines", f"{invoice}:{line}", quantity=n, scope=scope) for line, n in ((1, 1), (2, 1313), (3, 2)))
    )
    assert told(results) == [("applied", None), ("rejected", "constraint_violation"), ("applied", None)]

"""What the service refuses to the app: scopes that may not be read any more, numbers that it does not serve."""

from __future__ import annotations

import pytest

from tests.browser.conftest import EXAMPLES, MakePeer, Opens
from tests.browser.front import Front
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLE = EXAMPLES / "calendar" / "schema.yaml"


@pytest.mark.parametrize("when", ["offline", "live"])
async def test_a_scope_that_is_revoked_leaves_the_device_and_unsent_edits_stay(
    open_app: Opens, front: Front, productions: TidemarkServer, peers: MakePeer, ada: str, when: str
) -> None:
    """The rows of a workspace go from screen and disk; what was not sent is among the dead letters (I26, I33, I39)."""
    member = peers(productions, ada)
    scope = member.service.workspace(editor=member)
    front.upstream, front.token = productions.port, productions.token
    tab = await open_app(front, ada, schema="productions")
    await tab.live()
    await tab.js("(id) => db.productions.add({workspace_id: id, title: 'Hamlet'})", scope.removeprefix("workspace:"))
    await tab.sent()
    await tab.shows("productions", "Hamlet")
    if when == "offline":
        await front.stop()
        await tab.js("() => db.productions.toCollection().modify({stage: 'running'})")
    member.service.admin().expel(scope, ada)
    await front.start() if when == "offline" else None
    await tab.shows("productions")
    assert await tab.js("db.productions.count()") == 0
    await tab.until(f"db.status.value.rejected === {int(when == 'offline')}")
    letters = await tab.js("async () => (await db.rejected.list()).map(({code, fields}) => [code, fields])")
    # A push may have been answered before the pull has told of it.
    edit = {"stage": "running"}
    assert letters in ([["revoked", edit]], [["forbidden", edit]]) if when == "offline" else letters == []
    assert await tab.js("db.status.value.pending") == 0


@pytest.mark.parametrize("number", ["above", "below"])
async def test_a_number_that_is_not_served_keeps_the_outbox(
    open_app: Opens, front: Front, own: TidemarkServer, peers: MakePeer, ada: str, number: str
) -> None:
    """The app says that it needs an upgrade and keeps what was written; it is sent once it fits (I25)."""
    front.upstream, front.token = own.port, own.token
    if number == "below":
        own.schema = own.folder / "schema.yaml"
        own.schema.write_text(EXAMPLE.read_text("utf-8").replace("schema: 1", "schema: 2"), "utf-8")
        own.restart()
    tab = await open_app(front, ada, number="2" if number == "above" else "1")
    await tab.until('db.status.value.connection === "needs-upgrade"')
    await tab.add("Work")
    await tab.shows("categories", "Work")
    await tab.shows("outbox", "put user_categories")
    assert await tab.js("db.status.value.problem.code") == "schema_mismatch"
    own.schema = own.folder / "schema.yaml"
    own.schema.write_text(EXAMPLE.read_text("utf-8").replace("schema: 1", "schema: 2\noldest: 1"), "utf-8")
    own.restart()
    tab.options["number"] = "2"
    await tab.load()
    await tab.sent()
    assert peers(own, ada).names() == ["Work"]
    await tab.shows("categories", "Work")

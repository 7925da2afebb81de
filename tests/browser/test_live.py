"""An app that is open and connected: what is written anywhere is drawn, and what was not accepted is mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import MakePeer, Opens, example
from tests.browser.front import Front
from tests.outside import Program
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_another_client_writes_is_drawn_without_a_reload(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """A component shows another client's new row, its new name and its end as they happen."""
    tab, other = await open_app(front, ada), peers(calendar, ada)
    await tab.live()
    put = other.put("user_categories", name="Work")
    other.apply(put)
    await tab.shows("categories", "Work")
    other.apply(other.patch("user_categories", put["row"], name="Play"))
    await tab.shows("categories", "Play")
    other.apply(other.delete("user_categories", put["row"]))
    await tab.shows("categories")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_is_written_in_sql_is_drawn_without_a_reload(
    open_app: Opens, built: Path, tmp_path: Path, request: pytest.FixtureRequest, ada: str, kind: str
) -> None:
    """A component shows a row that another program changed in SQL, and then it is gone (I53)."""
    url = f"sqlite:///{tmp_path / 'db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    server = example("calendar", url, tmp_path)
    captured = server.schema.read_text("utf-8").replace("user_categories:\n", "user_categories:\n    capture: true\n")
    server.schema = tmp_path / "schema.yaml"
    server.schema.write_text(captured, "utf-8")
    with server:
        async with Front(built, server) as front, Program(url) as program:
            tab = await open_app(front, ada)
            await tab.add("Work")
            await tab.live()
            await tab.sent()
            await program.run(f"UPDATE user_categories SET name = 'Play' WHERE user_id = '{ada}'")
            await tab.shows("categories", "Play")
            await program.run(f"DELETE FROM user_categories WHERE user_id = '{ada}'")
            await tab.shows("categories")
            await tab.page.close()


async def test_a_rejected_write_is_rolled_back_and_can_be_mended(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """What was refused leaves the list, stands among the dead letters, and is accepted under another name (I26)."""
    tab, other = await open_app(front, ada), peers(calendar, ada)
    await tab.live()
    await tab.context.set_offline(True)
    other.apply(other.put("user_categories", name="Work"))
    await tab.add("Work")
    await tab.shows("categories", "Work")
    await tab.shows("outbox", "put user_categories")
    await tab.context.set_offline(False)
    await tab.until('document.querySelector("#rejected")?.textContent.startsWith("unique_violation")')
    await tab.holds("Work")
    assert await tab.js("db.status.value.rejected") == 1
    await tab.page.get_by_label("name").fill("Travel")
    await tab.page.get_by_role("button", name="Try again").click()
    await tab.shows("categories", "Travel", "Work")
    await tab.sent()
    await tab.until("db.status.value.inSync")
    assert other.names() == ["Travel", "Work"]


async def test_pages_of_another_origin_that_is_named_synchronise(
    open_app: Opens, built: Path, calendar: TidemarkServer, tmp_path: Path, peers: MakePeer, ada: str
) -> None:
    """The service answers pages of a configured origin: HTTP by CORS, and the stream; of no other origin."""
    async with Front(built, calendar) as front, Front(built, calendar) as stranger:
        url = f"sqlite:///{tmp_path / 'db'}"
        with example("calendar", url, tmp_path, TIDEMARK_ORIGINS=front.url) as server:
            tab = await open_app(front, ada, service=server.url)
            await tab.live()
            await tab.add("Work")
            await tab.sent()
            assert peers(server, ada).names() == ["Work"]
            assert not [path for path in front.asked if path.startswith("/sync/")]
            other = await open_app(stranger, ada, service=server.url)
            await other.until('db.status.value.problem?.code === "unavailable"')
            assert await other.names() == []
            await tab.page.close()

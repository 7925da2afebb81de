"""Nobody reads, writes or learns of rows of a scope that is not theirs, by any route (SPEC section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.contract.client import Device, Json, Service, code, fresh, token
from tests.contract.replica import Replica
from tests.contract.stream import Stream


class Household:
    """Somebody with private rows and a workspace, all of which hold a marker."""

    def __init__(self, service: Service) -> None:
        self.marker = fresh("secret").replace("-", "")
        self.owner = service.device(fresh("owner"))
        self.scope = service.workspace(owner=self.owner)
        self.note = self.owner.put("notes", title=self.marker)
        self.slug = self.owner.put("slugs", fresh("slug"), title=self.marker)
        self.task = self.owner.put("tasks", title=self.marker, scope=self.scope)
        self.tag = self.owner.put("tags", "tag", color=self.marker, scope=self.scope)
        self.owner.apply(self.note, self.slug, self.task, self.tag)
        self.replica = Replica()
        self.replica.pull(self.owner)
        self.before = self.state()

    def state(self) -> list[Json]:
        """Heads and changes as the owner sees them."""
        return [
            {name: run[name] for name in ("scope", "head", "digest", "changes")}
            for run in sorted(self.owner.pull()["scopes"], key=lambda run: str(run["scope"]))
        ]


@pytest.fixture
def household(service: Service) -> Iterator[Household]:
    """A household that must be untouched in the end."""
    household = Household(service)
    yield household
    assert household.state() == household.before


@pytest.fixture
def mallory(service: Service) -> Device:
    """Somebody else."""
    return service.device(fresh("mallory"))


def test_a_pull_reveals_nothing(household: Household, mallory: Device) -> None:
    """Pulls that name others' scopes, bear their watermarks or wait, answer as if there was nothing (I33)."""
    scopes = [household.scope, household.owner.scope]
    bodies: list[Json] = [
        mallory.pull_body(),
        mallory.pull_body(scopes=scopes),
        mallory.pull_body(dict.fromkeys(scopes, "x.0.0.3")),
        mallory.pull_body(household.replica.watermark, scopes=scopes),
        mallory.pull_body({mallory.scope: household.replica.watermark[household.owner.scope]}),
    ]
    for body in bodies:
        for accept in ("application/json", "application/x-ndjson"):
            response = mallory.post("/sync/pull", body, Accept=accept)
            assert response.status_code == 200
            assert household.marker not in response.text
            assert household.note["row"] not in response.text


def test_a_revoked_scope_tells_no_heads(household: Household, mallory: Device) -> None:
    """Of a scope that may not be read only its name comes back, in `revoked`, as of one that does not exist."""
    nowhere = f"workspace:{fresh('none')}"
    page = mallory.pull({household.scope: "x.1.0.3", nowhere: "x.1.0.3"})
    assert sorted(page["revoked"]) == sorted([household.scope, nowhere])
    assert [run["scope"] for run in page["scopes"]] == [mallory.scope]


WRITES: dict[str, Callable[[Household, Device, str | None], Json]] = {
    "put a note": lambda home, by, scope: by.put("notes", home.note["row"], title="mine", scope=scope),
    "patch a note": lambda home, by, scope: by.patch("notes", home.note["row"], title="mine", scope=scope),
    "delete a note": lambda home, by, scope: by.delete("notes", home.note["row"], scope=scope),
    "put a slug": lambda home, by, scope: by.put("slugs", home.slug["row"], title="mine", scope=scope),
    "delete a slug": lambda home, by, scope: by.delete("slugs", home.slug["row"], scope=scope),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_anothers_scope_is_forbidden(household: Household, mallory: Device, write: str) -> None:
    """Writes that name another user's scope are `forbidden` and have no effect."""
    (result,) = mallory.push(WRITES[write](household, mallory, household.owner.scope))
    assert (result["status"], code(result)) == ("rejected", "forbidden")


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_anothers_row_in_ones_own_scope_touches_nothing(
    household: Household, mallory: Device, write: str
) -> None:
    """Writes of another user's row under one's own scope change nothing and tell at most that the key is in use."""
    (result,) = mallory.push(WRITES[write](household, mallory, None))
    assert result["status"] != "retry"
    assert household.marker not in str(result)
    assert household.owner.user not in str(result)
    assert mallory.docs() == {}


def test_a_shared_scope_is_closed_to_strangers(household: Household, mallory: Device) -> None:
    """Writes to a workspace by who is no member are `forbidden`, for rows that exist and rows that do not."""
    results = mallory.push(
        mallory.put("tasks", title="mine", scope=household.scope),
        mallory.patch("tasks", household.task["row"], title="mine", scope=household.scope),
        mallory.delete("tasks", household.task["row"], scope=household.scope),
        mallory.put("tags", "tag", color="mine", scope=household.scope),
        mallory.put("boards", name="b", lead_id=household.task["row"], scope=household.scope),
    )
    assert [code(result) for result in results] == ["forbidden"] * 5
    assert len({str(result["error"]) for result in results}) == 1


def test_a_group_is_no_way_in(household: Household, mallory: Device) -> None:
    """A group with good mutations of one's own does not carry a forbidden one in."""
    results = mallory.push(
        mallory.put("notes", title="mine", group="g"),
        mallory.put("tasks", title="mine", scope=household.scope, group="g"),
    )
    assert [code(result) for result in results] == ["group_rejected", "forbidden"]


def test_a_replayed_mutation_of_another_tells_nothing(household: Household, mallory: Device) -> None:
    """The very mutation of somebody else, sent by another, is answered by that one's rights."""
    for mutation in (household.note | {"scope": household.owner.scope}, household.task):
        (result,) = mallory.push(mutation)
        assert (result["status"], code(result)) == ("rejected", "forbidden")


def test_a_reference_is_no_oracle(household: Household, mallory: Device, service: Service) -> None:
    """A reference to a row elsewhere is `ref_missing` in the same words as one to no row."""
    scope = service.workspace(owner=mallory)
    there, nowhere = mallory.push(
        mallory.put("boards", name="a", lead_id=household.task["row"], scope=scope),
        mallory.put("boards", name="b", lead_id=household.note["row"], scope=scope),
    )
    assert (code(there), code(nowhere)) == ("ref_missing", "ref_missing")
    words = [
        str(result["error"]).replace(row["row"], "…")
        for result, row in ((there, household.task), (nowhere, household.note))
    ]
    assert words[0] == words[1]


def test_a_stream_reveals_nothing(household: Household, mallory: Device) -> None:
    """Neither hello nor follow nor push by stream brings anything of another's scopes (I33)."""
    scopes = [household.scope, household.owner.scope]
    with Stream(mallory, household.replica.watermark, scopes=[*scopes, mallory.scope]) as stream:
        assert stream.welcome()["scopes"].keys() == {mallory.scope}
        stream.send({"t": "follow", "scopes": scopes})
        stream.send({"t": "follow", "scopes": scopes, "watermark": household.replica.watermark})
        stream.send({"t": "join", "room": household.scope})
        stream.send({"t": "broadcast", "room": household.scope, "event": "e", "payload": 1})
        mutations = [{"seq": 1} | mallory.put("tasks", title="mine", scope=household.scope)]
        stream.send({"t": "push", "id": "p", "schema": 3, "mutations": mutations})
        (result,) = stream.until("result")["results"]
        assert code(result) == "forbidden"
        stream.ping()
        assert household.marker not in str(stream.frames)
        assert {frame.get("scope") for frame in stream.frames if frame["t"] != "scope_revoked"} <= {None, mallory.scope}


def test_the_journal_reveals_nothing(household: Household, mallory: Device) -> None:
    """The journal gives a stranger nothing, whatever is asked for (I33)."""
    for params in (
        {},
        {"scope": household.scope},
        {"scope": household.owner.scope},
        {"row": household.note["row"]},
        {"user": household.owner.user},
        {"client": household.owner.client},
        {"entity": "notes", "limit": 100},
    ):
        response = mallory.get("/sync/events", **params)
        assert household.marker not in response.text
        assert response.status_code != 200 or response.json()["events"] == []


def test_members_are_not_shown_to_strangers(household: Household, mallory: Device) -> None:
    """A stranger neither sees nor changes who is in a scope."""
    for response in (
        mallory.members_response(household.scope),
        mallory.grant_response(household.scope, mallory.user, "owner"),
        mallory.expel_response(household.scope, household.owner.user),
        mallory.members_response(household.owner.scope),
    ):
        assert response.status_code == 403
        assert household.owner.user not in response.text.replace(household.owner.scope, "")


@pytest.mark.parametrize("role", ["Admin", "admin ", "operator", "owner", ["admin"], {"admin": True}, True, 1])
def test_only_the_role_admin_is_an_admin(household: Household, service: Service, role: object) -> None:
    """A token with any other `role` gives no rights."""
    device = service.device(role=role)
    response = device.grant_response(household.scope, device.user, "owner")
    assert response.status_code in (401, 403)


def test_users_that_look_alike_are_apart(household: Household, service: Service) -> None:
    """Users whose names differ in case, by a space, or by an escape, have scopes of their own."""
    user = household.owner.user
    for twin in (
        user.upper(),
        f"{user} ",
        f" {user}",
        f"{user}%20",
        f"{user}\n",
        f"user:{user}",
        f"{user}/",
        f"%{user}",
    ):
        device = service.device(twin)
        response = device.post("/sync/pull", device.pull_body())
        assert household.marker not in response.text
    assert token(user) != token(user.upper())

"""A replica: it applies runs by the four rules of section 5 and distrusts every one of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.contract.client import Device, Json
from tests.contract.model import digest


@dataclass
class Copy:
    """What a replica holds of one scope."""

    rows: dict[tuple[str, str], tuple[int, Json]] = field(default_factory=dict)
    watermark: str = ""
    to: int = 0
    highest: int = 0


class MustPull(Exception):
    """A run does not follow on what the replica holds (rule 3)."""


@dataclass
class Replica:
    """Copies of scopes, their watermarks, and how many heads were proved by digest."""

    scopes: dict[str, Copy] = field(default_factory=dict)
    proved: int = 0

    @property
    def watermark(self) -> dict[str, str]:
        """What the replica says it holds."""
        return {scope: copy.watermark for scope, copy in self.scopes.items() if copy.watermark}

    def copy(self, scope: str) -> Copy:
        """The copy of one scope, empty if there is none."""
        return self.scopes.setdefault(scope, Copy())

    def versions(self, scope: str) -> dict[tuple[str, str], int]:
        """The versions of the live rows."""
        return {name: version for name, (version, _) in self.copy(scope).rows.items()}

    def docs(self, scope: str) -> dict[tuple[str, str], Json]:
        """The documents without key and `created_at`, as the model gives them."""
        return {
            (entity, row): {name: value for name, value in doc.items() if name not in ("id", "created_at")}
            for (entity, row), (_, doc) in self.copy(scope).rows.items()
        }

    def apply(self, run: Json, *, asked: bool) -> bool:
        """Apply one run; `asked` says that it answers the replica's own latest pull, hello or follow."""
        check_shape(run)
        copy = self.copy(run["scope"])
        if run["head"] < copy.highest and not (run["reset"] and asked):
            return False
        if run["from"] == 0:
            if not run["reset"] and copy.to and run["to"] <= copy.to:
                return False
            copy.rows.clear()
            copy.to = 0
        elif run["from"] > copy.to:
            raise MustPull(run["scope"])
        for change in run["changes"]:
            if change["version"] > copy.to:
                _put(copy, change)
        copy.highest = run["head"] if run["reset"] else max(copy.highest, run["head"])
        if run["to"] >= copy.to:
            copy.to, copy.watermark = run["to"], run["watermark"]
        if run["to"] == run["head"] == copy.to:
            assert digest(self.versions(run["scope"])) == run["digest"], run["scope"]
            self.proved += 1
        return True

    def revoke(self, scope: str) -> None:
        """Forget a scope."""
        self.scopes.pop(scope, None)

    def pull(self, device: Device, **rest: object) -> list[Json]:
        """Pull until there is no more; the runs that came."""
        runs: list[Json] = []
        while True:
            page = device.pull(self.watermark, **rest)
            for run in page["scopes"]:
                self.apply(run, asked=True)
            for scope in page["revoked"]:
                self.revoke(scope)
            runs += page["scopes"]
            if not page["more"]:
                return runs


def _put(copy: Copy, change: Json) -> None:
    name = change["entity"], change["row"]
    if change["doc"] is None:
        copy.rows.pop(name, None)
    else:
        copy.rows[name] = change["version"], change["doc"]


def check_shape(run: Json) -> None:
    """What must hold of every run, whoever sends it."""
    assert 0 <= run["from"] <= run["to"] <= run["head"], run
    assert isinstance(run["watermark"], str) and isinstance(run["reset"], bool)
    names = [(change["entity"], change["row"]) for change in run["changes"]]
    assert len(names) == len(set(names)), "a row appears twice in one run"
    versions = [change["version"] for change in run["changes"]]
    assert len(versions) == len(set(versions)), "a version appears twice in one run"
    assert all(run["from"] < version <= run["to"] for version in versions), run
    assert (run.get("digest") is not None) == (run["to"] == run["head"]), run
    assert run["from"] == 0 or not run["reset"], run

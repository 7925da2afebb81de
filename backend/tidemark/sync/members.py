"""Who belongs to a scope: read, given and taken under the scope's lock (SPEC 7), journaled like any other write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidemark.store.base import Saved, ScopeState, Store, Transaction
from tidemark_protocol import rows
from tidemark_protocol.errors import RequestError
from tidemark_protocol.model import USER, Declaration

from . import journal
from .access import Access, Principal, allows
from .commit import Commit, CommitListener


class Members:
    """Membership of shared scopes. Not being allowed and there being no such scope answer alike."""

    def __init__(
        self,
        *,
        store: Store,
        access: Access,
        declaration: Declaration,
        now: Callable[[], int],
        committed: CommitListener,
        patience: float = 10.0,
        pause: float = 0.005,
    ) -> None:
        self._store = store
        self._access = access
        self._roles = declaration.scopes
        self._now = now
        self._committed = committed
        self._patience = patience
        self._pause = pause

    async def list(self, principal: Principal, scope: str) -> dict[str, str]:
        """Who has which role. RequestError `malformed`; `forbidden` but for admins and members whose role manages."""
        _parsed(scope)
        members = await self._store.members(scope)
        role = members.get(principal.user)
        known = bool(members) or bool(await self._store.states([scope]))
        if _is_shared(scope) and known and (principal.admin or allows(self._access.grant_of(scope, role), "manage")):
            return members
        raise _forbidden()

    async def put(self, principal: Principal, scope: str, user: str, role: str) -> None:
        """Give `user` a role; an admin's makes the scope. RequestError `unknown_role`, `forbidden`, `malformed`."""
        await self._change(principal, scope, user, role)

    async def delete(self, principal: Principal, scope: str, user: str) -> None:
        """Take `user`'s role away; anyone may leave. RequestError `forbidden`, `malformed`."""
        await self._change(principal, scope, user, None)

    async def _change(self, principal: Principal, scope: str, user: str, role: str | None) -> None:
        own = self._check_names(principal, scope, user)
        caller = (scope, principal.user)

        async def body(tx: Transaction) -> list[Commit] | None:
            self._check_allowed(principal, scope, user, role, (await tx.roles([caller])).get(caller))
            created = {own, scope} if principal.admin and role is not None else {own}
            states = await tx.lock({own, scope}, created)
            if len(states) < 2:
                return None
            roles = await tx.roles([caller, (scope, user)])
            self._check_allowed(principal, scope, user, role, roles.get(caller))
            before = roles.get((scope, user))
            if before == role:
                return []
            await tx.set_role(scope, user, role)
            moved = [_moved(state) for state in states.values()]
            event = _event(principal, user, before, role)
            entry = journal.commit_entry(scope, self._now(), [event])
            await tx.save(Saved(moved, [], [], [], [], [entry]))
            return [Commit(state.head, state, 0, b"") for state in moved]

        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while (commits := await self._store.transact(body)) is None:
            if loop.time() >= deadline:
                raise RequestError("unavailable", "the scope is held by a writer that does not end", retry_after=1.0)
            await self._exists_or_forbidden(scope, created=principal.admin and role is not None)
            await asyncio.sleep(self._pause)
        for commit in commits:
            self._committed(commit)

    async def _exists_or_forbidden(self, scope: str, *, created: bool) -> None:
        """A scope that could not be locked is either busy or not there."""
        if not created and not await self._store.states([scope]):
            raise _forbidden()

    def _check_names(self, principal: Principal, scope: str, user: str) -> str:
        """The own scope of `user`; RequestError when a name cannot be one."""
        kind = _parsed(scope)
        try:
            own = rows.user_scope(user)
        except ValueError as fault:
            raise RequestError("malformed", f"user: {fault}") from fault
        if kind != USER and kind not in self._roles and principal.admin:
            raise RequestError("malformed", f"no scopes of kind {kind} are declared")
        return own

    def _check_allowed(self, principal: Principal, scope: str, user: str, role: str | None, held: str | None) -> None:
        leaves = role is None and user == principal.user and held is not None
        manages = principal.admin or allows(self._access.grant_of(scope, held), "manage")
        if not _is_shared(scope) or not (manages or leaves):
            raise _forbidden()
        declared = self._roles.get(scope.partition(":")[0], {})
        if role is not None and role not in declared:
            raise RequestError("unknown_role", f"the declared roles are {', '.join(declared)}")


def _parsed(scope: str) -> str:
    """The scope's kind."""
    try:
        return rows.parse_scope(scope)[0]
    except ValueError as fault:
        raise RequestError("malformed", f"scope: {fault}") from fault


def _is_shared(scope: str) -> bool:
    return not scope.startswith(f"{USER}:")


def _moved(state: ScopeState) -> ScopeState:
    state.members += 1
    return state


def _event(principal: Principal, user: str, before: str | None, role: str | None) -> journal.Event:
    return journal.Event(
        outcome="member",
        op="put" if role is not None else "delete",
        entity="",
        row="",
        at="",
        user=principal.user,
        client="",
        version=0,
        content=0,
        overwrote=None if before is None else {user: before},
        values={user: role},
    )


def _forbidden() -> RequestError:
    return RequestError("forbidden", "no such scope, or it may not be managed")

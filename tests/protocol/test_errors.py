"""The codes of what is refused (SPEC 4, 7)."""

from __future__ import annotations

import pytest

from tidemark_protocol.errors import (
    MUTATION_CODES,
    REQUEST_CODES,
    ROOM_CODES,
    DeclarationError,
    Fault,
    Postponed,
    Rejection,
    Remedy,
    RequestError,
)


def test_codes_stand_in_the_order_of_the_checks() -> None:
    """The order is part of SPEC 4: the first check that fails names the code (I19)."""
    assert " ".join(MUTATION_CODES) == (
        "schema_mismatch invalid_mutation unknown_entity invalid_scope forbidden invalid_row invalid_clock "
        "clock_ahead read_only_field unknown_field invalid_field missing_field too_large too_deep row_taken "
        "row_unknown too_old clock_reused ref_missing ref_in_use unique_violation constraint_violation rule "
        "group_rejected unavailable"
    )


def test_only_three_codes_leave_a_mutation_in_the_outbox() -> None:
    """What answers `retry`; everything else is parked among the dead letters."""
    kept = {code: remedy for code, remedy in MUTATION_CODES.items() if remedy is not Remedy.PARK}
    assert kept == {
        "schema_mismatch": Remedy.UPGRADE,
        "clock_ahead": Remedy.RESTAMP,
        "unavailable": Remedy.RETRY,
    }


@pytest.mark.parametrize("code", REQUEST_CODES)
def test_a_refused_request_has_a_status(code: str) -> None:
    """Each code has one, an error's."""
    assert 400 <= RequestError(code, "why").status <= 503


def test_codes_of_rooms_are_no_others() -> None:
    """A code means one thing (SPEC 6)."""
    assert ROOM_CODES.keys().isdisjoint(REQUEST_CODES.keys() | MUTATION_CODES.keys())


def test_what_helps_against_a_refused_request() -> None:
    """Waiting helps only where the server says so; a client never repeats what is wrong by itself."""
    by_remedy = {remedy: {code for code, (_, own) in REQUEST_CODES.items() if own is remedy} for remedy in Remedy}
    assert by_remedy[Remedy.RETRY] == {"rate_limited", "internal", "unavailable"}
    assert by_remedy[Remedy.SPLIT] == {"malformed", "too_large"}
    assert by_remedy[Remedy.AUTHENTICATE] == {"unauthenticated", "token_expired"}
    assert by_remedy[Remedy.UPGRADE] == {"schema_mismatch"}


def test_errors_say_what_they_are_about() -> None:
    """Code, message, field and waiting time are attributes; the text is the message."""
    rejection = Rejection("invalid_field", "title must be text", "title")
    assert (rejection.code, rejection.message, rejection.field, str(rejection)) == (
        "invalid_field",
        "title must be text",
        "title",
        "title must be text",
    )
    assert Rejection("forbidden", "no").field is None
    assert (Postponed("clock_ahead", "later").code, str(Postponed("clock_ahead", "later"))) == ("clock_ahead", "later")
    refused = RequestError("unavailable", "the database is away", retry_after=1.5)
    assert (refused.status, refused.detail, refused.retry_after) == (503, "the database is away", 1.5)


def test_every_fault_of_a_declaration_is_named() -> None:
    """With its path, where it has one."""
    error = DeclarationError([Fault("entities.tasks.fields.status", "has no values"), Fault("", "is no object")])
    assert str(error) == "entities.tasks.fields.status: has no values; is no object"
    assert len(error.faults) == 2

"""What a push must look like before any mutation is looked at (SPEC sections 4 and 7)."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.contract.client import Device, Json, Service, assert_problem, code, key


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def note(device: Device, **rest: Any) -> Json:
    """A well-formed put with a `seq`."""
    return {"seq": 1} | device.put("notes", title="a note") | rest


def body(device: Device, **rest: Any) -> Json:
    """A well-formed push of one note."""
    return {"client": device.client, "schema": 3, "mutations": [note(device)]} | rest


def test_a_well_formed_push_is_answered_by_results_and_a_clock(device: Device) -> None:
    """A push answers one result for each mutation, with seq, status, scope and version, and the server's clock."""
    # Invariant (I15).
    answer = device.push_answer(device.put("notes", title="one"))
    (result,) = answer["results"]
    assert result["seq"] == 1
    assert result["status"] == "applied"
    assert result["scope"] == device.scope
    assert result["version"] >= 1
    assert len(answer["clock"]) == 34


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"push"',
        "7",
        "{}",
        "{'client': 1}",
        '{"client": NaN}',
        "\ufeff{}",
        b"\xff\xfe{}",
        b'{"client": "\xff"}',
        "[" * 200 + "]" * 200,
        '{"a":' * 200 + "1" + "}" * 200,
    ],
)
def test_a_body_that_is_not_a_push_is_malformed(device: Device, text: str | bytes) -> None:
    """A body that is no JSON object of a push's shape, or nested beyond 64, is a 400."""
    assert_problem(device.post("/sync/push", text), 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client", 7),
        ("client", None),
        ("client", "not a uuid"),
        ("schema", "3"),
        ("schema", None),
        ("schema", True),
        ("schema", 3.5),
        ("mutations", None),
        ("mutations", {}),
        ("mutations", "none"),
        ("mutations", [7]),
        ("mutations", [None]),
        ("mutations", [[]]),
    ],
)
def test_a_wrong_envelope_is_malformed(device: Device, name: str, value: Any) -> None:
    """An envelope with a key of another type is a 400."""
    assert_problem(device.post("/sync/push", body(device) | {name: value}), 400)


@pytest.mark.parametrize("name", ["client", "schema", "mutations"])
def test_an_incomplete_envelope_is_malformed(device: Device, name: str) -> None:
    """An envelope without one of its keys is a 400."""
    whole = body(device)
    del whole[name]
    assert_problem(device.post("/sync/push", whole), 400)


@pytest.mark.parametrize("seq", [None, True, False, "1", 1.5, [], {}, 0, -1, 2**53, 10**30])
def test_a_seq_that_is_no_counter_is_malformed(device: Device, seq: Any) -> None:
    """A `seq` that is not an integer from 1 to 2^53-1 is a 400 for the whole request."""
    assert_problem(device.post("/sync/push", body(device, mutations=[note(device, seq=seq)])), 400)


def test_a_fractional_seq_is_malformed(device: Device) -> None:
    """A `seq` written with a fraction is a 400, even 1.0."""
    text = json.dumps(body(device)).replace('"seq": 1,', '"seq": 1.0,')
    assert '"seq": 1.0' in text
    assert_problem(device.post("/sync/push", text), 400)


def test_a_missing_seq_is_malformed(device: Device) -> None:
    """A mutation without `seq` is a 400."""
    mutation = note(device)
    del mutation["seq"]
    assert_problem(device.post("/sync/push", body(device, mutations=[mutation])), 400)


@pytest.mark.parametrize("seqs", [(1, 1), (2, 1), (1, 3, 2), (5, 6, 6)])
def test_seqs_that_do_not_rise_are_malformed(device: Device, seqs: tuple[int, ...]) -> None:
    """`seq` rises strictly within a request, or the request is a 400."""
    mutations = [note(device, seq=seq) for seq in seqs]
    assert_problem(device.post("/sync/push", body(device, mutations=mutations)), 400)


def test_a_malformed_push_changes_nothing(device: Device) -> None:
    """A 400 for one mutation's `seq` leaves the good mutation before it without effect (I18)."""
    assert_problem(device.post("/sync/push", body(device, mutations=[note(device), note(device, seq=1)])), 400)
    assert device.docs() == {}


def test_seqs_may_leave_gaps_and_begin_again(device: Device) -> None:
    """Results answer by the `seq` that was sent; the next request may use the same ones."""
    for _ in range(2):
        mutations = [note(device, seq=41), note(device, seq=2**53 - 1)]
        results = device.post("/sync/push", body(device, mutations=mutations)).json()["results"]
        assert [(result["seq"], result["status"]) for result in results] == [(41, "applied"), (2**53 - 1, "applied")]


@pytest.mark.parametrize("surrogate", ["\\ud800", "\\udfff", "\\udc00\\ud800", "a\\ud83dz"])
@pytest.mark.parametrize("place", ["value", "field", "row", "envelope"])
def test_lone_surrogates_are_malformed(device: Device, surrogate: str, place: str) -> None:
    """A lone surrogate anywhere in the body is a 400 that changes nothing."""
    mutation = note(device)
    if place == "value":
        mutation["fields"]["title"] = "@@"
    elif place == "field":
        mutation["fields"]["@@"] = 1
    elif place == "row":
        mutation["row"] = "@@"
    text = json.dumps(body(device, mutations=[mutation], **({"odd": "@@"} if place == "envelope" else {})))
    assert_problem(device.post("/sync/push", text.replace("@@", surrogate)), 400)
    assert device.docs() == {}


def test_a_whole_surrogate_pair_is_text(device: Device) -> None:
    """An escaped surrogate pair is one character."""
    mutation = note(device)
    mutation["fields"]["title"] = "@@"
    text = json.dumps(body(device, mutations=[mutation])).replace("@@", "\\ud83d\\ude00")
    assert device.post("/sync/push", text).json()["results"][0]["status"] == "applied"
    doc = device.doc("notes", mutation["row"])
    assert doc is not None
    assert doc["title"] == "\U0001f600"


def test_of_duplicate_keys_the_last_counts(device: Device) -> None:
    """A body is decoded once: of duplicate keys the last is checked, stored and sent on."""
    mutation = note(device)
    mutation["fields"] = {"title": "first", "@@": 1}
    text = json.dumps(body(device, mutations=[mutation])).replace('"@@": 1', '"title": "last"')
    assert device.post("/sync/push", text).json()["results"][0]["status"] == "applied"
    doc = device.doc("notes", mutation["row"])
    assert doc is not None
    assert doc["title"] == "last"


def test_unknown_keys_are_ignored(device: Device) -> None:
    """Unknown keys in the envelope and in a mutation change nothing."""
    mutation = note(device, mood="odd", nested={"a": [1, {"b": None}]})
    response = device.post("/sync/push", body(device, mutations=[mutation], priority=9, extra={"a": 1}))
    assert response.json()["results"][0]["status"] == "applied"


def test_a_thousand_mutations_are_taken(device: Device) -> None:
    """A request of exactly 1,000 mutations is accepted."""
    results = device.push(*(device.put("notes", title="n") for _ in range(1000)))
    assert {result["status"] for result in results} == {"applied"}


def test_more_than_a_thousand_mutations_are_refused_whole(device: Device) -> None:
    """A request of 1,001 mutations is a 413 that changes nothing."""
    mutations = [device.put("notes", title="n") for _ in range(1001)]
    assert_problem(device.post("/sync/push", device.envelope(mutations)), 413)
    assert device.docs() == {}


def test_more_than_a_mebibyte_is_refused_whole(device: Device) -> None:
    """A body above 1 MiB is a 413 that changes nothing; one just below is taken."""
    bodies = [note(device, seq=seq) for seq in range(1, 6)]
    for mutation in bodies:
        mutation["fields"]["body"] = "x" * 200_000
    text = json.dumps(body(device, mutations=bodies))
    assert_problem(device.post("/sync/push", text + " " * (2**20 + 1 - len(text))), 413)
    assert device.docs() == {}
    assert device.post("/sync/push", text + " " * (2**20 - len(text))).status_code == 200


def test_a_body_of_unknown_length_is_bounded_too(device: Device) -> None:
    """A chunked body above 1 MiB is refused with 413 as well."""
    chunks = (b" " * 65_536 for _ in range(20))
    response = device.service.http.post(
        "/sync/push", content=chunks, headers=device.headers | {"Content-Type": "application/json"}
    )
    assert_problem(response, 413)


@pytest.mark.parametrize("path", ["/sync/push", "/sync/pull"])
@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "text/json"])
def test_another_content_type_is_unsupported(device: Device, path: str, kind: str) -> None:
    """A body sent as anything but `application/json` is a 415."""
    assert_problem(device.post(path, body(device), **{"Content-Type": kind}), 415)


@pytest.mark.parametrize("path", ["/sync/push", "/sync/pull"])
def test_a_content_encoding_is_unsupported(device: Device, path: str) -> None:
    """A request with a `Content-Encoding` is a 415."""
    packed = gzip.compress(json.dumps(body(device)).encode())
    assert_problem(device.post(path, packed, **{"Content-Encoding": "gzip"}), 415)


def test_a_bad_mutation_is_its_own_affair(device: Device) -> None:
    """A mutation wrong in itself is rejected, and its neighbours are applied (I16)."""
    good, other = device.put("notes", title="good"), device.put("notes", title="other")
    first, bad, last = device.push(good, device.put("nothing", title="bad"), other)
    assert (first["status"], last["status"]) == ("applied", "applied")
    assert (bad["status"], code(bad)) == ("rejected", "unknown_entity")
    assert device.docs("notes").keys() == {good["row"], other["row"]}


def test_a_rejection_says_what_and_where(device: Device) -> None:
    """A rejection's error has a code, a message for people, and the field it is about or null."""
    unknown, field = device.push(device.put("nothing"), device.put("notes", key(), title="t", position="high"))
    assert set(unknown["error"]) >= {"code", "message", "field"}
    assert unknown["error"]["field"] is None
    assert field["error"]["field"] == "position"
    assert isinstance(field["error"]["message"], str)

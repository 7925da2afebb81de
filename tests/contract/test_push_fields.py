"""Values of every type: what is taken, how documents write it, and what is refused (SPEC section 10)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import Device, Service, code, key

UUID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


@pytest.fixture(scope="module")
def device(service: Service) -> Device:
    """A user of this module alone."""
    return service.device()


TAKEN: list[tuple[str, Any, Any]] = [
    ("word", "ab", "ab"),
    ("word", "0123456789", "0123456789"),
    ("word", "😀" * 10, "😀" * 10),
    ("word", "e\u0301e\u0301", "e\u0301e\u0301"),
    ("word", " '\";-- ", " '\";-- "),
    ("word", "\u2028\u2029\ufeff", "\u2028\u2029\ufeff"),
    ("word", "a\tb\r\nc\x7f", "a\tb\r\nc\x7f"),
    ("word", None, None),
    ("code", "abc12", "abc12"),
    ("count", 0, 0),
    ("count", -1, -1),
    ("count", 2**53 - 1, 2**53 - 1),
    ("count", -(2**53 - 1), -(2**53 - 1)),
    ("percent", 0, 0),
    ("percent", 100, 100),
    ("ratio", 1.5, 1.5),
    ("ratio", -3, -3),
    ("ratio", 1e300, 1e300),
    ("ratio", 5e-324, 5e-324),
    ("ratio", 0.1, 0.1),
    ("ratio", 123456789.123456789, 123456789.123456789),
    ("price", "1.5", "1.50"),
    ("price", "12", "12.00"),
    ("price", "-0.10", "-0.10"),
    ("price", "999999.99", "999999.99"),
    ("price", "0", "0.00"),
    ("price", None, None),
    ("open", False, False),
    ("open", True, True),
    ("day", "2024-02-29", "2024-02-29"),
    ("day", "1999-12-31", "1999-12-31"),
    ("moment", "2026-11-20T10:00:00Z", "2026-11-20T10:00:00.000000Z"),
    ("moment", "2026-11-20T10:00:00.123456Z", "2026-11-20T10:00:00.123456Z"),
    ("moment", "2026-11-20T10:00:00.5Z", "2026-11-20T10:00:00.500000Z"),
    ("moment", "2026-11-20T12:00:00+02:00", "2026-11-20T10:00:00.000000Z"),
    ("moment", "2026-11-20T00:30:00.25-05:30", "2026-11-20T06:00:00.250000Z"),
    ("moment", "1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z"),
    ("token", UUID, UUID),
    ("state", "doing", "doing"),
    ("data", {"a": [1, 2.5, "x", None, True, {"b": {}}]}, {"a": [1, 2.5, "x", None, True, {"b": {}}]}),
    ("data", [], []),
    ("data", "text", "text"),
    ("data", 0, 0),
    ("data", False, False),
    ("data", {"z": 1, "a": 2, "": 3, "é\n": 4}, {"z": 1, "a": 2, "": 3, "é\n": 4}),
    ("labels", {}, {}),
    ("labels", {"a": 1, "x/y": [1], "~": {"deep": 2}, "é" * 128: True}, None),
    ("labels", {"k" * 128: "v"}, None),
]

REFUSED: list[tuple[str, Any]] = [
    ("word", "a"),
    ("word", "01234567890"),
    ("word", "😀" * 11),
    ("word", "nul\0"),
    ("word", 7),
    ("word", True),
    ("word", ["ab"]),
    ("word", {"a": "b"}),
    ("code", "ABC"),
    ("code", "abc\n"),
    ("code", "abc12 "),
    ("code", "1abc"),
    ("count", 1.0),
    ("count", 1.5),
    ("count", "1"),
    ("count", True),
    ("count", 2**53),
    ("count", -(2**53)),
    ("count", [1]),
    ("percent", -1),
    ("percent", 101),
    ("ratio", "1.5"),
    ("ratio", True),
    ("ratio", [1.5]),
    ("price", 1.5),
    ("price", 1),
    ("price", "1.234"),
    ("price", "1000000.00"),
    ("price", "12345678"),
    ("price", "1e3"),
    ("price", "NaN"),
    ("price", "Infinity"),
    ("price", ""),
    ("price", "abc"),
    ("price", " 1.00"),
    ("price", "1.00\n"),
    ("price", "1,00"),
    ("price", "٣.00"),
    ("price", "0x10"),
    ("price", "1_0"),
    ("open", None),
    ("open", 1),
    ("open", "true"),
    ("day", "2026-02-30"),
    ("day", "2026-2-3"),
    ("day", "20260203"),
    ("day", "2026-02-03T00:00:00Z"),
    ("day", "2026-W05-1"),
    ("day", "2026-02-03\n"),
    ("day", 20260203),
    ("hour", "25:00:00"),
    ("hour", "12:60:00"),
    ("hour", "noon"),
    ("hour", 12),
    ("hour", "12:00:00\n"),
    ("moment", "2026-11-20T10:00:00"),
    ("moment", "2026-11-20"),
    ("moment", "2026-11-20T10:00:00.1234567Z"),
    ("moment", "2026-13-20T10:00:00Z"),
    ("moment", "2026-11-20T25:00:00Z"),
    ("moment", "2026-11-20T10:00:00Z\n"),
    ("moment", "2026-11-20T10:00:00+99:00"),
    ("moment", 1763632800),
    ("moment", "now"),
    ("token", UUID.upper()),
    ("token", UUID.replace("-", "")),
    ("token", "{" + UUID + "}"),
    ("token", "urn:uuid:" + UUID),
    ("token", UUID + "\n"),
    ("token", "no"),
    ("token", 7),
    ("state", "odd"),
    ("state", "TODO"),
    ("state", "todo "),
    ("state", None),
    ("state", 0),
    ("data", {"a": "nul\0"}),
    ("data", {"nul\0": 1}),
    ("data", "nul\0"),
    ("data", [["\0"]]),
    ("labels", None),
    ("labels", []),
    ("labels", "a"),
    ("labels", {"": 1}),
    ("labels", {"k" * 129: 1}),
    ("labels", {"nul\0": 1}),
    ("labels", {"a": "nul\0"}),
]


def test_what_is_taken_is_given_back_in_one_form(device: Device) -> None:
    """Every good value is taken by a put and given back in its canonical form (I37)."""
    puts = [device.put("samples", fields={name: value}) for name, value, _ in TAKEN]
    results = device.push(*puts)
    docs = device.docs("samples")
    for put, result, (name, value, form) in zip(puts, results, TAKEN, strict=True):
        assert result["status"] == "applied", (name, value, result)
        expected = value if form is None else form
        found = docs[put["row"]][name]
        assert found == expected, (name, value)
        assert isinstance(found, bool) == isinstance(expected, bool), (name, value)


def test_a_patch_takes_the_same_values(device: Device) -> None:
    """Every good value is taken by a patch as it is by a put."""
    puts = [device.put("samples") for _ in TAKEN]
    device.apply(*puts)
    patches = [
        device.patch("samples", put["row"], fields={name: value})
        for put, (name, value, _) in zip(puts, TAKEN, strict=True)
    ]
    device.apply(*patches)
    docs = device.docs("samples")
    for put, (name, value, form) in zip(puts, TAKEN, strict=True):
        assert docs[put["row"]][name] == (value if form is None else form), (name, value)


@pytest.mark.parametrize("field", ["count", "ratio", "word"])
def test_an_integer_beyond_all_bounds_is_its_mutations_fault(device: Device, field: str) -> None:
    """An integer of 400 digits, which is good JSON, does not fail the mutations around it."""
    bad, good = device.put("samples", fields={field: 10**400}), device.put("samples")
    assert [result["status"] for result in device.push(bad, good)] == ["rejected", "applied"]


@pytest.mark.parametrize("kind", ["put", "patch"])
def test_what_breaks_its_type_is_refused(device: Device, kind: str) -> None:
    """Every bad value is `invalid_field`, named, and leaves the mutations around it alone (I49)."""
    row = key()
    device.apply(device.put("samples", row))
    bad = [
        getattr(device, kind)("samples", key() if kind == "put" else row, fields={name: value})
        for name, value in REFUSED
    ]
    good = device.put("samples", word="good")
    *results, last = device.push(*bad, good)
    assert last["status"] == "applied"
    for result, (name, value) in zip(results, REFUSED, strict=True):
        assert (result["status"], code(result)) == ("rejected", "invalid_field"), (name, value, result)
        assert result["error"]["field"].split("/")[0] == name


@pytest.mark.parametrize("hour", ["00:00:00", "12:34:56", "23:59:59"])
def test_a_time_is_given_back(device: Device, hour: str) -> None:
    """A time of day is given back as the same time."""
    put = device.put("samples", hour=hour)
    device.apply(put)
    doc = device.doc("samples", put["row"])
    assert doc is not None
    assert doc["hour"].startswith(hour)


def test_an_integer_is_not_rounded(device: Device) -> None:
    """An integer and the integers within json keep every digit."""
    put = device.put("samples", count=9007199254740991, data=[9007199254740991, -9007199254740991])
    device.apply(put)
    doc = device.doc("samples", put["row"])
    assert doc is not None
    assert (doc["count"], doc["data"]) == (9007199254740991, [9007199254740991, -9007199254740991])


def test_a_document_holds_key_fields_and_times_and_nothing_else(device: Device) -> None:
    """A document holds its key, every declared field, `created_at` and `updated_at` (I37)."""
    put = device.put("samples")
    device.apply(put)
    doc = device.doc("samples", put["row"])
    assert doc is not None
    assert doc.keys() == {name for name, _, _ in TAKEN} | {"hour", "id", "created_at", "updated_at"}


@pytest.mark.parametrize("path", ["labels/", "labels/" + "k" * 129, "labels/nul\0"])
def test_a_map_key_outside_its_bounds_is_refused(device: Device, path: str) -> None:
    """A path to a map key that is empty, above 128 characters or with NUL is rejected."""
    row = key()
    device.apply(device.put("samples", row))
    (result,) = device.push(device.patch("samples", row, fields={path: 1}))
    assert result["status"] == "rejected"


@pytest.mark.parametrize("path", ["word/a", "data/a", "/", "labels/a~2b", "labels/a/b"])
def test_a_path_that_leads_nowhere_is_refused(device: Device, path: str) -> None:
    """A path below a field that is no map, or escaped wrongly, is rejected."""
    row = key()
    device.apply(device.put("samples", row))
    (result,) = device.push(device.patch("samples", row, fields={path: "ab"}))
    assert result["status"] == "rejected"

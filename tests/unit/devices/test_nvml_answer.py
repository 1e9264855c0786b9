"""Answers of the NVML helper, true and false ones."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.devices.nvml_answer import NvmlDevice, devices_of, driver_of
from juggler.devices.reading import SIZE_MAX, ProcessMemory
from juggler.units import GIB


def one(**more: Any) -> NvmlDevice:
    row = {"index": 0, "name": "X", "uuid": "GPU-1", "total": 8 * GIB, "free": 6 * GIB, "used": GIB, "processes": []}
    return devices_of({"devices": [{**row, **more}]})[0]


def test_a_device() -> None:
    """As it was told."""
    found = one(processes=[[10, GIB, "llama-server"], [11, None, ""]])
    assert (found.index, found.name, found.uuid, found.key) == (0, "X", "GPU-1", "GPU-1")
    assert (found.total_bytes, found.free_bytes) == (8 * GIB, 6 * GIB)
    assert found.processes == (ProcessMemory(10, "llama-server", GIB), ProcessMemory(11, "", None))


@pytest.mark.parametrize(
    ("fields", "total", "free"),
    [
        ({"free": 9 * GIB}, 8 * GIB, 8 * GIB),
        ({"free": None}, 8 * GIB, 7 * GIB),
        ({"free": -1}, 8 * GIB, 7 * GIB),
        ({"free": None, "used": 9 * GIB}, 8 * GIB, None),
        ({"free": 2**64 - 1, "used": None}, 8 * GIB, None),
        ({"total": 2**64 - 1}, None, None),
        ({"total": 0}, None, None),
        ({"total": None}, None, None),
        ({"total": True}, None, None),
        ({"total": "8 GiB"}, None, None),
    ],
)
def test_lying_sizes(fields: dict[str, Any], total: int | None, free: int | None) -> None:
    """Clamped to what can be, derived from the rest, or dropped."""
    found = one(**fields)
    assert (found.total_bytes, found.free_bytes) == (total, free)


def test_lying_processes() -> None:
    """More than the whole device is not told; what is no process is left out; no list is not nobody."""
    rows = [[10, 9 * GIB, "a"], [11, -1, 5], [0, 1, "x"], [-3, 1, "x"], [True, 1, "x"], ["1", 1, "x"], [1, 2], None, 7]
    assert one(processes=rows).processes == (ProcessMemory(10, "a", None), ProcessMemory(11, "", None))
    assert one(processes=None).processes is None
    assert one(processes={"1": 2}).processes is None


def test_words_are_made_printable() -> None:
    """They end in logs and terminals; what is missing gets a name."""
    assert one(name="NVIDIA\x1b[31m" + "x" * 500).name.startswith("NVIDIA [31mxxx")
    assert len(one(name="x" * 500).name) <= 100
    found = one(name=None, uuid=None)
    assert (found.name, found.key) == ("NVIDIA GPU", "index 0")
    assert driver_of({"driver": "570.1"}) == "570.1"
    assert driver_of({}) == ""


def test_order_and_doubles() -> None:
    """By number; the first of two with the same one."""
    rows = [{"index": 1, "name": "b"}, {"index": 0, "name": "a"}, {"index": 1, "name": "c"}, {"name": "d"}]
    assert [found.name for found in devices_of({"devices": rows})] == ["a", "b"]


_KEYS = st.sampled_from(["index", "name", "uuid", "total", "free", "used", "processes", "error", "devices"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=20,
)


@given(_JSON)
def test_any_answer_is_survived(devices: Any) -> None:
    """Whatever JSON comes, what is told of it can be true."""
    for found in devices_of({"devices": devices}):
        assert found.index >= 0
        assert found.total_bytes is None or 0 < found.total_bytes <= SIZE_MAX
        assert found.free_bytes is None or 0 <= found.free_bytes <= (found.total_bytes or 0)
        for process in found.processes or ():
            assert process.pid > 0

"""Protocol tests run on asyncio, and again on uvloop where it is installed."""

import asyncio
import importlib.util
from collections.abc import Callable, Mapping

import pytest


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test of this folder runs once per event loop."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if importlib.util.find_spec("uvloop") is not None:  # an optional extra
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories

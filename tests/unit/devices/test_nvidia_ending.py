"""Helpers that fail in every way: bounded, told, and nothing left."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from juggler.devices.nvidia import NvmlHelper, driver_is_there, driver_may_be_there
from tests.e2e.support import processes_marked
from tests.unit.devices.support import LIMIT_S, FakeNvml, gpu, scene

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path, scene(gpu()))


@pytest.fixture
async def left(fake: FakeNvml) -> AsyncIterator[Callable[[], list[str]]]:
    """The helpers that live; none may after the test."""

    def marked() -> list[str]:
        return processes_marked(fake.marker)

    yield marked
    await until(lambda: not marked(), "nothing is left")


async def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


Left = Callable[[], list[str]]

PROGRAMS = {
    "no object": "input(); print([1, 2])",
    "no JSON": "input(); print('hello')",
    "half a line": "input(); print('{\"driver\":', end='')",
    "no text": "import sys; input(); sys.stdout.buffer.write(b'\\xff\\xfe\\n')",
    "too deep": "input(); print('[' * 100000)",
    "too long": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
    "too large a number": "input(); print('{\"devices\": ' + '9' * 10000 + '}')",
    "no answer": "",
    "dead at once": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_nonsense(fake: FakeNvml, left: Left, name: str) -> None:
    """No answer, a reason, no error, and the program is gone."""
    helper = fake.helper((sys.executable, "-c", PROGRAMS[name]))
    assert await helper.ask() is None
    assert "cannot be asked" in helper.trouble
    assert helper.pid is None
    await helper.close()
    assert left() == []


async def test_a_program_that_does_not_exist() -> None:
    """A reason, as for any other failure."""
    helper = NvmlHelper(("/nonexistent/python",))
    assert await helper.ask() is None
    assert "No such file" in helper.trouble
    await helper.close()


async def test_a_hanging_start(fake: FakeNvml, left: Left) -> None:
    """1. the driver hangs in its first call 2. the deadline passes 3. the helper is killed, and well later on."""
    fake.play(scene(gpu(), hang="nvmlInit"))
    helper = fake.helper(first_limit_s=0.5)
    assert await helper.ask() is None
    assert "does not answer" in helper.trouble
    fake.play(scene(gpu()))
    again = fake.helper()
    assert await again.ask() is not None
    await again.close()
    await helper.close()
    assert left() == []


async def test_a_pause_after_a_failure(fake: FakeNvml, left: Left) -> None:
    """A driver that fails is not asked again at once, and each failure makes the pause longer."""
    fake.play(scene(init_error=9))
    helper = fake.helper(back_off_s=100.0)
    assert await helper.ask() is None
    assert helper.code == 9
    fake.play(scene(gpu()))
    assert await helper.ask() is None
    assert "Driver Not Loaded" in helper.trouble
    await until(lambda: not left(), "the failed one is gone and no other was started")
    assert helper._back_off_s == 200.0
    helper._not_before = 0.0
    assert await helper.ask() is not None
    state: tuple[object, ...] = (helper.trouble, helper.code, helper._back_off_s)
    assert state == ("", None, 100.0)
    await helper.close()


async def test_many_who_ask(fake: FakeNvml, left: Left) -> None:
    """One after the other, all by one helper."""
    helper = fake.helper()
    answers = await asyncio.gather(*(helper.ask() for _ in range(10)))
    assert all(answer is not None for answer in answers)
    assert len(left()) == 1
    await helper.close()


@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 20])
async def test_cancelled_at_any_step(fake: FakeNvml, left: Left, rounds: int) -> None:
    """Also while the helper is being started: it does not outlive the question."""
    helper = fake.helper()
    asking = asyncio.create_task(helper.ask())
    for _ in range(rounds):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: not left(), "the helper of the cancelled question is gone")
    assert await helper.ask() is not None
    await helper.close()


async def test_cancelled_while_the_driver_hangs(fake: FakeNvml, left: Left) -> None:
    """1. the helper has answered before 2. a question hangs and is cancelled 3. that helper is ended, another answers.

    Its late answer would else be taken for the one to the next question.
    """
    helper = fake.helper()
    assert await helper.ask() is not None
    first = helper.pid
    fake.play(scene(gpu(), hang="nvmlDeviceGetCount"))
    asking = asyncio.create_task(helper.ask())
    await asyncio.sleep(0)
    assert helper.pid == first
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: not left(), "the helper of the cancelled question is gone")
    fake.play(scene(gpu()))
    assert await helper.ask() is not None
    assert helper.pid != first
    await helper.close()


async def test_closed_means_closed(fake: FakeNvml, left: Left) -> None:
    """No helper is started after the end, and closing twice is no error."""
    helper = fake.helper()
    assert await helper.ask() is not None
    await helper.close()
    assert left() == []
    assert await helper.ask() is None
    await helper.close()
    assert left() == []


def test_signs_of_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that the driver makes; without the module it is not worth a look at them."""
    assert driver_is_there((str(tmp_path / "none"), str(tmp_path)))
    assert not driver_is_there((str(tmp_path / "none"),))
    for broken in (None, ValueError("pynvml.__spec__ is None")):

        def find(_: str, broken: Exception | None = broken) -> None:
            if broken is not None:
                raise broken

        monkeypatch.setattr("juggler.devices.nvidia.find_spec", find)
        assert not driver_may_be_there((str(tmp_path),))

"""One disk that its readers share, and the page cache in front of it."""

from collections import OrderedDict
from collections.abc import Callable, Collection


class PageCache:
    """Bytes per file, least recently read first out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._files: OrderedDict[str, float] = OrderedDict()
        self._used = 0.0

    def held(self, name: str) -> float:
        """Bytes of the file that are cached."""
        return self._files.get(name, 0.0)

    def resize(self, capacity: int) -> None:
        """Processes have taken host memory, or given it back."""
        self._capacity = capacity
        for name in list(self._files):
            excess = self._used - self._capacity
            if excess <= 0:
                return
            self._drop(name, min(excess, self._files[name]))

    def hits(self, name: str, file_bytes: int) -> float:
        """Bytes that a load of the whole file, from its beginning, will find cached; the rest of it is dropped.

        What is left of a file is its end, and its pages are older than whatever the load brings in. If the missing
        part does not fit beside it in place of older files, each page read pushes out the next one to be read, and
        nothing is found: least recently used with a cyclic scan.
        """
        held = self._files.get(name, 0.0)
        if not held:
            return 0.0
        older = 0.0
        for other, size in self._files.items():
            if other == name:
                break
            older += size
        if file_bytes - held > self._capacity - self._used + older:
            self._drop(name, held)
            return 0.0
        self._files.move_to_end(name)
        return held

    def add(self, name: str, size: float, drop_first: Collection[str] = ()) -> None:
        """Cache more bytes of a file, in place of others': of ``drop_first`` before anybody else's."""
        self._files[name] = self._files.pop(name, 0.0) + size
        self._used += size
        others = [one for one in self._files if one != name]
        for other in [*sorted(others, key=lambda one: one not in drop_first), name]:
            excess = self._used - self._capacity
            if excess <= 0:
                return
            self._drop(other, min(excess, self._files[other]))

    def _drop(self, name: str, size: float) -> None:
        self._used -= size
        left = self._files[name] - size
        if left > 0.5:
            self._files[name] = left  # keeps its place in the order
        else:
            del self._files[name]


class Read:
    """One reader of the disk."""

    __slots__ = ("done", "idle", "left", "size")

    def __init__(self, size: float, done: Callable[[], None], idle: bool) -> None:
        self.size = self.left = size
        self.done = done
        self.idle = idle


class Disk:
    """Shared evenly by its readers; idle ones read only while no other does.

    Args:
        bps: Bytes per second of all together.
        clock: The present time.
        at: Calls a function at a time.
    """

    def __init__(self, bps: float, clock: Callable[[], float], at: Callable[[float, Callable[[], None]], None]) -> None:
        self._bps = bps
        self._clock = clock
        self._at = at
        self._reads: list[Read] = []
        self._since = 0.0
        self._round = 0

    def read(self, size: float, done: Callable[[], None], *, idle: bool = False) -> Read:
        """Begin to read; ``done`` is called at the end."""
        self._advance()
        read = Read(size, done, idle)
        self._reads.append(read)
        self._plan()
        return read

    def cancel(self, read: Read) -> float:
        """Stop reading; returns the bytes read so far."""
        self._advance()
        if read in self._reads:
            self._reads.remove(read)
            self._plan()
        return read.size - read.left

    def _served(self) -> list[Read]:
        return [one for one in self._reads if not one.idle] or self._reads

    def _advance(self) -> None:
        now = self._clock()
        served = self._served()
        for read in served:
            read.left = max(0.0, read.left - (now - self._since) * self._bps / len(served))
        self._since = now

    def _plan(self) -> None:
        """Look again when the next reader will be done."""
        self._round += 1
        served = self._served()
        if served:
            number = self._round
            left = min(one.left for one in served)
            self._at(self._clock() + left * len(served) / self._bps, lambda: self._look(number))

    def _look(self, number: int) -> None:
        if number != self._round:
            return
        self._advance()
        over = [one for one in self._reads if one.left < 1.0]
        self._reads = [one for one in self._reads if one.left >= 1.0]
        self._plan()
        for read in over:
            read.done()

"""The simulated machine: a clock, processes, backends that serve, and clients that ask.

The world carries out a policy's orders and holds it to the rules: it raises ``RuntimeError`` for an order that
a real machine could not carry out (a start without memory, a request handed to a process that is not up).
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from enum import Enum

from bench.schedsim.files import Disk, PageCache, Read
from bench.schedsim.model import Client, Model, Request, Workload
from bench.schedsim.policy import Policy

LIMIT_S = 1e6
"""A run that lasts longer is stuck."""


class Phase(Enum):
    """What a process is doing."""

    LOADING = "loading"
    UP = "up"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    WAKING = "waking"
    STOPPING = "stopping"


class Process:
    """One process of a model."""

    __slots__ = ("backlog", "held", "held_ram", "model", "phase", "read", "running", "since", "warm")

    def __init__(self, model: Model, now: float) -> None:
        self.model = model
        self.phase = Phase.LOADING
        self.since = now
        """Start of the load, wake, unload or stop under way."""
        self.held = model.memory_bytes
        self.held_ram = 0
        self.running: dict[int, Request] = {}
        self.backlog: deque[Request] = deque()
        self.read: Read | None = None
        self.warm: set[str] = set()
        """Clients whose prompt it has cached."""


class World:
    """Runs one workload under one policy.

    Args:
        workload: As drawn for the seed.
        seed: For the load times only.
        policy: Made for this world.
    """

    def __init__(self, workload: Workload, seed: int, policy: Callable[["World"], Policy]) -> None:
        self.now = 0.0
        self.workload = workload
        self.machine = workload.machine
        self.models = {model.name: model for model in workload.models}
        self.processes: dict[str, Process] = {}
        self.requests: list[Request] = []
        self.free_bytes = self.machine.memory_bytes
        self.free_ram_bytes = self.machine.ram_bytes
        self.swaps = 0
        """Loads and wakes."""
        self.swap_s = 0.0
        """Seconds spent on loads, wakes, unloads and stops."""
        self.served_s = 0.0
        """Seconds in which some backend was at work."""
        self.events = 0
        self._seed = seed
        self._working = 0
        self._working_since = 0.0
        self._turns_made: dict[str, int] = {}
        self._loads = dict.fromkeys(self.models, 0)
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = itertools.count()
        self._reading: tuple[str, Read] | None = None
        self.disk = Disk(self.machine.disk_bps, lambda: self.now, lambda at, what: self.at(at, what))
        self.cache = PageCache(self.machine.cache_bytes)
        if workload.warm_files:
            for model in workload.models:
                self.cache.add(model.name, model.file_bytes)
        self.policy = policy(self)

    # -- time --------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], *arguments: object) -> None:
        """Call a function at a time."""
        heapq.heappush(self._agenda, (when, next(self._sequence), what, arguments))

    def run(self) -> None:
        """Until nothing more happens.

        Raises:
            RuntimeError: Requests were left without an answer, or the policy gave an impossible order.
        """
        for client in self.workload.clients:
            self._next_turn(client, 0)
        agenda = self._agenda
        while agenda:
            self.now, _, what, arguments = heapq.heappop(agenda)
            self.events += 1
            what(*arguments)
            if self.now > LIMIT_S:
                break
        left = [one.id for one in self.requests if one.ended_at is None]
        if left:
            raise RuntimeError(
                f"{self.policy.name} on {self.workload.name!r}: {len(left)} requests were never answered"
            )

    # -- clients -----------------------------------------------------------------------------------------------

    def _next_turn(self, client: Client, number: int) -> None:
        if number < len(client.turns):
            self.at(self.now + client.turns[number].think_s, self._ask, client, number)

    def _ask(self, client: Client, number: int) -> None:
        request = Request(len(self.requests) + 1, client, client.turns[number], self.now)
        self.requests.append(request)
        if client.open:
            self._next_turn(client, number + 1)
        self.policy.arrived(request)

    def _over(self, request: Request) -> None:
        request.ended_at = self.now
        if not request.client.open:
            # The turns of a closed client run one after the other: how many it has made is how far it has come.
            self._turns_made[request.client.name] = made = self._turns_made.get(request.client.name, 0) + 1
            self._next_turn(request.client, made)

    # -- requests ----------------------------------------------------------------------------------------------

    def hand(self, request: Request) -> None:
        """Give a request to its backend, which is up."""
        process = self.processes.get(request.model)
        if process is None or process.phase is not Phase.UP or request.ended_at is not None:
            raise RuntimeError(f"request {request.id} handed to {request.model}, which cannot take it")
        if len(process.running) < self._slots(process):
            self._serve(process, request)
        else:
            process.backlog.append(request)

    def refuse(self, request: Request) -> None:
        """Turn a request away, or give up on it."""
        if request.ended_at is not None:
            raise RuntimeError(f"request {request.id} refused after it had ended")
        request.refused = True
        self._over(request)

    def _slots(self, process: Process) -> int:
        return self.policy.slots or process.model.slots

    def _serve(self, process: Process, request: Request) -> None:
        turn, client = request.turn, request.client.name
        process.running[request.id] = request
        first_at = self.now + turn.first_s + (0.0 if client in process.warm else turn.lost_s)
        process.warm.add(client)
        if self._working == 0:
            self._working_since = self.now
        self._working += 1
        if self.policy.sees_first_bytes:
            self.at(first_at, self._first_byte, process, request)
        else:
            request.first_byte_at = first_at
            self.at(first_at + turn.service_s, self._end, process, request)

    def _first_byte(self, process: Process, request: Request) -> None:
        if request.id in process.running:
            request.first_byte_at = self.now
            self.policy.first_byte(request)
            self.at(self.now + request.turn.service_s, self._end, process, request)

    def _end(self, process: Process, request: Request) -> None:
        if request.id not in process.running:
            return  # it was cut off
        self._stop_working(process, request)
        self._over(request)
        if process.backlog:
            self._serve(process, process.backlog.popleft())
        self.policy.ended(request)

    def _stop_working(self, process: Process, request: Request) -> None:
        del process.running[request.id]
        self._working -= 1
        if self._working == 0:
            self.served_s += self.now - self._working_since

    # -- processes ---------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Load a model that has no process; answered by ``ready`` unless it is stopped meanwhile."""
        model = self.models[name]
        if name in self.processes:
            raise RuntimeError(f"{name} started twice")
        self._take(model.memory_bytes, 0, name)
        self._end_read_ahead()
        process = self.processes[name] = Process(model, self.now)
        self.swaps += 1
        self._loads[name] += 1
        noise = self._noise(name)
        cached = self.cache.hits(name, model.file_bytes)
        at = self.now + noise * (model.start_s + cached / self.machine.cache_bps)
        self.at(at, self._read_rest, process, noise, model.file_bytes - cached)

    def _noise(self, name: str) -> float:
        """Of the model's latest load; the same one whatever the policy."""
        spread = self.machine.load_noise
        return random.Random(f"{self._seed}/{name}/{self._loads[name]}").uniform(1 - spread, 1 + spread)

    def _read_rest(self, process: Process, noise: float, size: float) -> None:
        if process.phase is not Phase.LOADING:
            return
        if size < 1.0:
            self._become_ready(process)
            return

        def done() -> None:
            process.read = None
            self.cache.add(process.model.name, size)
            self._become_ready(process)

        process.read = self.disk.read(size * noise, done)

    def _become_ready(self, process: Process) -> None:
        process.phase = Phase.UP
        self.swap_s += self.now - process.since
        self.policy.ready(process.model.name)

    def stop(self, name: str, *, cut: bool = False) -> None:
        """End a process; answered by ``gone``.

        Args:
            cut: Requests that it works on, or that wait in it, are lost; without it they make the order impossible.
        """
        process = self.processes[name]
        if process.phase is Phase.STOPPING or ((process.running or process.backlog) and not cut):
            raise RuntimeError(f"{name} cannot be stopped: {process.phase.value}, {len(process.running)} running")
        lost = [*process.running.values(), *process.backlog]
        for request in list(process.running.values()):
            self._stop_working(process, request)
        process.backlog.clear()
        if process.phase in (Phase.LOADING, Phase.WAKING):
            self.swap_s += self.now - process.since
            if process.read is not None:
                done = self.disk.cancel(process.read) / process.read.size
                size = (process.model.file_bytes - self.cache.held(name)) * done
                self.cache.add(name, size)
        process.phase, process.since = Phase.STOPPING, self.now
        self.at(self.now + process.model.stop_s, self._gone, process)
        for request in lost:
            request.first_byte_at = None
            self.refuse(request)

    def _gone(self, process: Process) -> None:
        self.swap_s += self.now - process.since
        del self.processes[process.model.name]
        self.free_bytes += process.held
        self._give_ram(process)
        self.policy.gone(process.model.name)

    def unload(self, name: str) -> None:
        """Free the memory, keep the process; answered by ``unloaded``."""
        process, soft = self.processes[name], self.models[name].soft
        if process.phase is not Phase.UP or process.running or process.backlog or soft is None:
            raise RuntimeError(f"{name} cannot be unloaded: {process.phase.value}")
        self._take(0, soft.ram_bytes, name)
        process.held_ram = soft.ram_bytes
        process.phase, process.since = Phase.UNLOADING, self.now
        self.at(self.now + soft.unload_s, self._unloaded, process, soft.residue_bytes)

    def _unloaded(self, process: Process, residue: int) -> None:
        if process.phase is Phase.UNLOADING:
            process.phase = Phase.UNLOADED
            self.swap_s += self.now - process.since
            self.free_bytes += process.held - residue
            process.held = residue
            process.warm.clear()
            self.policy.unloaded(process.model.name)

    def wake(self, name: str) -> None:
        """Bring back what was unloaded; answered by ``ready``."""
        process, soft = self.processes[name], self.models[name].soft
        if process.phase is not Phase.UNLOADED or soft is None:
            raise RuntimeError(f"{name} cannot be woken: {process.phase.value}")
        self._take(process.model.memory_bytes - process.held, 0, name)
        process.held = process.model.memory_bytes
        process.phase, process.since = Phase.WAKING, self.now
        self.swaps += 1
        self.at(self.now + soft.wake_s, self._awake, process)

    def _awake(self, process: Process) -> None:
        if process.phase is Phase.WAKING:
            self._give_ram(process)
            self._become_ready(process)

    def _take(self, size: int, ram: int, name: str) -> None:
        if size > self.free_bytes or ram > self.free_ram_bytes:
            raise RuntimeError(f"{name} does not fit: {size} of {self.free_bytes} bytes, host {ram}")
        self.free_bytes -= size
        if ram:
            self.free_ram_bytes -= ram
            self._resize_cache()

    def _give_ram(self, process: Process) -> None:
        if process.held_ram:
            self.free_ram_bytes += process.held_ram
            process.held_ram = 0
            self._resize_cache()

    def _resize_cache(self) -> None:
        machine = self.machine
        self.cache.resize(machine.cache_bytes - (machine.ram_bytes - self.free_ram_bytes))

    # -- files -------------------------------------------------------------------------------------------------

    def cached_share(self, name: str) -> float:
        """Part of the model's file that is in the page cache."""
        return min(self.cache.held(name) / self.models[name].file_bytes, 1.0)

    def read_ahead(self, name: str) -> None:
        """Read a file into the page cache while the disk has nothing else to do; answered by ``read_ended``."""
        if self._reading is not None:
            raise RuntimeError(f"read-ahead of {name} while {self._reading[0]} is being read")
        size = self.models[name].file_bytes - self.cache.held(name)
        if size < 1.0 or any(one.phase is Phase.LOADING for one in self.processes.values()):
            self.at(self.now, self.policy.read_ended, name)
            return

        def done() -> None:
            self._end_read_ahead()

        self._reading = (name, self.disk.read(size, done, idle=True))

    def _end_read_ahead(self) -> None:
        """What was read so far is cached, in place of files that are in card memory anyway."""
        if self._reading is not None:
            name, read = self._reading
            self._reading = None
            resident = {one for one, process in self.processes.items() if process.phase is Phase.UP}
            self.cache.add(name, self.disk.cancel(read), drop_first=resident)
            self.policy.read_ended(name)

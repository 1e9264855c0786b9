"""What one decision costs with a long queue. Run: ``python bench/decision.py [--queued N] [--endpoints N]``.

The shipped scheduler with 10 000 requests queued on 50 endpoints that share a card for about four of them. Requests
keep arriving and ending, timers fire and swaps happen, so that the queue stays about as long; each call of
``Scheduler.handle`` is timed by the kind of its event, in the processor's time: other programs do not count. Printed
are median, 99th percentile and longest in milliseconds; the target is a 99th percentile below 1 ms for arrival, end
and timer. ``--profile`` tells where the time goes instead. Exit status 1 above the target.
"""

import argparse
import cProfile
import heapq
import itertools
import pstats
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.core import Scheduler
from juggler.scheduler.state import InstanceSpec
from juggler.units import GIB

TARGET_MS = 1.0
TARGETED = ("RequestArrived", "RequestEnded", "TimerFired")
CARD = PoolId("gpu0")


class Machine:
    """Answers the scheduler's commands after a while and times what it takes to decide."""

    def __init__(self, endpoints: int, queued: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        specs = [
            InstanceSpec(
                InstanceId(f"e{number}"),
                f"e{number}",
                footprint={CARD: self._random.randint(4, 9) * GIB},
                slots=4,
                queue_limit=10 * queued,
            )
            for number in range(endpoints)
        ]
        self.scheduler = Scheduler(specs, {CARD: 24 * GIB})
        self.now = 0.0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._names = [spec.id for spec in specs]
        self._agenda: list[tuple[float, int, e.Event]] = []
        self._sequence = itertools.count()
        self._ids = itertools.count(1)
        self._timer_at: float | None = None
        self.waiting = 0

    def arrive(self) -> None:
        """One more request, for whichever endpoint; one in five is batch work, clients come back."""
        chosen = min(int(self._random.expovariate(6 / len(self._names))), len(self._names) - 1)
        event = e.RequestArrived(
            self.now,
            RequestId(next(self._ids)),
            self._names[chosen],
            priority=-1 if self._random.random() < 0.2 else 0,
            max_wait_s=60.0,
            timeout_s=1e6,
            client=f"client {self._random.randrange(200)}",
        )
        self.waiting += 1
        self._post(event)

    def step(self) -> None:
        """The next thing that happens: a report or the timer."""
        if self._timer_at is not None and (not self._agenda or self._timer_at <= self._agenda[0][0]):
            self.now, self._timer_at = max(self.now, self._timer_at), None
            self._post(e.TimerFired(self.now))
        elif self._agenda:
            self.now, _, event = heapq.heappop(self._agenda)
            self._post(event)

    def _post(self, event: e.Event) -> None:
        began = time.thread_time()
        commands = self.scheduler.handle(event)
        self.seconds[type(event).__name__].append(time.thread_time() - began)
        for command in commands:
            self._obey(command)

    def _after(self, least_s: float, most_s: float) -> float:
        return self.now + self._random.uniform(least_s, most_s)

    def _report(self, at: float, event: e.Event) -> None:
        heapq.heappush(self._agenda, (at, next(self._sequence), event))

    def _obey(self, command: c.Command) -> None:
        match command:
            case c.Forward(request=request):
                self.waiting -= 1
                first_at = self._after(0.05, 0.5)
                self._report(first_at, e.FirstByte(first_at, request))
                at = first_at + self._random.uniform(0.2, 4.0)
                self._report(at, e.RequestEnded(at, request))
            case c.StartInstance(instance=instance, generation=generation):
                at = self._after(3.0, 8.0)
                self._report(at, e.InstanceReady(at, instance, generation))
            case c.StopInstance(instance=instance, generation=generation):
                at = self._after(0.3, 1.0)
                self._report(at, e.InstanceGone(at, instance, generation))
            case c.ReadAhead(instance=instance):
                at = self._after(2.0, 5.0)
                self._report(at, e.FilesSeen(at, instance, 1.0, 5 * GIB, finished=True))
            case c.SetTimer(at=timer_at):
                self._timer_at = timer_at
            case c.Reject():
                raise RuntimeError(f"nothing was to be refused: {command}")
            case _:
                pass


def run(endpoints: int, queued: int, decisions: int) -> Machine:
    """Fill the queue, then let things happen; only what happens then is timed."""
    machine = Machine(endpoints, queued)
    while machine.waiting < queued:
        machine.arrive()
    machine.seconds.clear()
    for _ in range(decisions):
        machine.step()
        while machine.waiting < queued:
            machine.arrive()
    return machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=50)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--decisions", type=int, default=10_000, help="reports and timers to live through")
    parser.add_argument("--profile", action="store_true", help="tell where the time goes")
    chosen = parser.parse_args()
    if min(chosen.endpoints, chosen.queued, chosen.decisions) < 1:
        parser.error("numbers above zero")
    if chosen.profile:
        profile = cProfile.Profile()
        profile.runcall(run, chosen.endpoints, chosen.queued, chosen.decisions)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return 0
    machine = run(chosen.endpoints, chosen.queued, chosen.decisions)
    print(f"{chosen.queued} requests queued on {chosen.endpoints} endpoints; milliseconds per decision")
    print(f"{'event':<18}{'count':>8}{'median':>9}{'p99':>9}{'longest':>9}")
    slow = []
    for kind, seconds in sorted(machine.seconds.items()):
        ranked = sorted(1000 * one for one in seconds)
        p99 = ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))]
        print(f"{kind:<18}{len(ranked):>8}{statistics.median(ranked):>9.3f}{p99:>9.3f}{ranked[-1]:>9.3f}")
        if kind in TARGETED and p99 >= TARGET_MS:
            slow.append(kind)
    print(f"target: p99 < {TARGET_MS:g} ms: {'missed by ' + ', '.join(slow) if slow else 'met'}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

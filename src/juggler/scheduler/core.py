"""The scheduler: ``handle(event) -> list[Command]``, the only mutator of ``SchedulerState``.

Nothing here waits, reads a clock, logs or does I/O. The engine feeds events and runs the commands; each command
that takes time comes back as an event. Two cheap paths keep the ordinary request away from the decision pass: a
request for a ready instance with a free slot and no queue is forwarded at once, and its end changes nothing while
nobody waits anywhere.
"""

from collections.abc import Callable, Iterable
from typing import Any

from juggler.errors import InvalidTransition, QueueTimeout, ShuttingDown
from juggler.ids import InstanceId, RequestId
from juggler.scheduler import steering
from juggler.scheduler.admission import failed_recently, queue_timeout_text, queue_view, refusal, removed_error
from juggler.scheduler.attach import attach, on_attached, on_missed, on_unload_refused
from juggler.scheduler.commands import (
    Command,
    FinishShutdown,
    Forward,
    Mode,
    OrderDone,
    Record,
    Reject,
    SetTimer,
    StopInstance,
)
from juggler.scheduler.decide import DecisionPass, forward, settle, take
from juggler.scheduler.events import (
    AttachMissed,
    AttachOffered,
    BusyProbed,
    ClientLeft,
    Event,
    FilesSeen,
    FirstByte,
    FootprintExpected,
    FootprintMeasured,
    InstanceGone,
    InstancePinned,
    InstanceReady,
    InstanceUnloaded,
    Kind,
    OrderGiven,
    PoolsFound,
    PoolsMeasured,
    ProcessExited,
    Reconfigured,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    RequestPromoted,
    ShutdownRequested,
    StartDeferred,
    StartFailed,
    SwapsLocked,
    TimerFired,
    UnloadFailed,
)
from juggler.scheduler.failures import note_failure, tries_again
from juggler.scheduler.foreign import believe
from juggler.scheduler.ledger import Amounts, Ledger
from juggler.scheduler.policy import Policy, weight_of
from juggler.scheduler.queue import Waiting
from juggler.scheduler.reconfigure import on_reconfigured
from juggler.scheduler.state import Instance, InstanceSpec, Probe, SchedulerState
from juggler.scheduler.steering import Steering
from juggler.scheduler.swaps import WELL_CACHED
from juggler.scheduler.transitions import CROSSINGS, GONE, LEAVING, UP, Move, Residency

STORY_SHOWN = 12
"""Events told with an impossible move."""

READ_AGAIN_SHARE = 0.01
"""Files of which this much more, or less, is in the page cache than was thought may be read ahead again: a load of
somebody else's ended the reading before it was through, or pushed out what it had brought."""


class Scheduler:
    """Decides for one machine.

    Args:
        specs: Every instance of the configuration.
        capacity: Bytes per pool.
        policy: Parameters; the defaults are those of scheduling.md.
    """

    def __init__(self, specs: Iterable[InstanceSpec], capacity: Amounts, policy: Policy | None = None) -> None:
        self.state = SchedulerState(specs, capacity, policy or Policy())
        self._handlers: dict[type[Any], Callable[[Any, list[Command]], None]] = {
            RequestArrived: self._on_request_arrived,
            ClientLeft: self._on_client_left,
            FirstByte: self._on_first_byte,
            RequestEnded: self._on_request_ended,
            StartDeferred: self._on_start_deferred,
            PoolsMeasured: self._on_pools_measured,
            PoolsFound: self._on_pools_found,
            FootprintExpected: self._on_footprint_expected,
            FootprintMeasured: self._on_footprint_measured,
            FilesSeen: self._on_files_seen,
            InstanceReady: self._on_instance_ready,
            AttachOffered: self._on_attach_offered,
            AttachMissed: self._on_attach_missed,
            StartFailed: self._on_start_failed,
            InstanceUnloaded: self._on_instance_unloaded,
            UnloadFailed: self._on_unload_failed,
            ProcessExited: self._on_process_exited,
            InstanceGone: self._on_instance_gone,
            BusyProbed: self._on_busy_probed,
            OrderGiven: self._steered(steering.on_order_given),
            InstancePinned: self._steered(steering.on_instance_pinned),
            SwapsLocked: self._steered(steering.on_swaps_locked),
            RequestCancelled: self._steered(steering.on_request_cancelled),
            RequestPromoted: self._steered(steering.on_request_promoted),
            Reconfigured: self._steered(on_reconfigured),
            TimerFired: self._on_timer_fired,
            ShutdownRequested: self._on_shutdown_requested,
        }

    def handle(self, event: Event) -> list[Command]:
        """Take one event, return what is to be done, in order.

        Raises:
            InvalidTransition: The event cannot happen in this state: a bug. The text tells the last events.
        """
        out: list[Command] = []
        try:
            self._handlers[type(event)](event, out)
        except InvalidTransition as impossible:
            raise InvalidTransition(f"{impossible} on {event}; before it: {self._story()}") from impossible
        self._tell(event, tuple(out))
        return out

    def _tell(self, what: Event | Waiting, out: tuple[Command, ...]) -> None:
        """Remember what happened, for the story of an impossible move."""
        state = self.state
        state.events_handled += 1
        state.story.append((state.events_handled, what, out))

    # -- requests ----------------------------------------------------------------------------------------------

    def forward_at_once(
        self, now: float, request: RequestId, name: InstanceId, kind: Kind, priority: int, client: str
    ) -> bool:
        """Let an ordinary request through, whose instance is ready, has a free slot, and is not waited for.

        What ``RequestArrived`` and the ``Forward`` that comes of it would do, without the objects: so it is done for
        nearly every request. False: nothing was done, and the event is to be handled.
        """
        state = self.state
        instance = state.instances[name]
        if instance.residency is not Residency.READY or state.shutting_down:
            return False
        if state.total.waiting and len(instance.queue):
            return False
        if kind is Kind.WORK:
            if len(instance.running) >= instance.spec.slots or instance.spec.queue_limit < 1 or instance.failure:
                return False
        elif kind is Kind.LOAD:
            return False
        waiting = Waiting(request, name, kind, priority, now, now, now, 1.0, client, now)  # no weight: it does not wait
        state.requests[request] = waiting
        if kind is Kind.WORK:
            instance.estimates.arrived(now)
            state.client_asked(client, instance, now)
            take(instance, waiting, now)
        else:
            instance.light[request] = waiting
        state.events_handled += 1
        state.story.append((state.events_handled, waiting, ()))
        return True

    def request_done(self, now: float, request: RequestId, first_byte_at: float | None) -> list[Command]:
        """What ``FirstByte``, if its answer began, and ``RequestEnded`` would do.

        Raises:
            InvalidTransition: It does not run.
        """
        waiting = self.state.requests.get(request)
        if waiting is None or waiting.forwarded_at is None:
            raise InvalidTransition(f"request {request} ended, but it is not running; before it: {self._story()}")
        if first_byte_at is not None:
            self._note_first_byte(waiting, first_byte_at)
        out: list[Command] = []
        self._end(waiting, now, out)
        state = self.state
        state.events_handled += 1
        state.story.append((state.events_handled, ("ended", request, now, first_byte_at), tuple(out)))
        return out

    def _on_request_arrived(self, event: RequestArrived, out: list[Command]) -> None:
        state, now = self.state, event.now
        if event.request in state.requests:
            raise InvalidTransition(f"request {event.request} arrived twice")
        instance = state.instances.get(event.instance)
        if instance is None:
            out.append(Reject(event.request, removed_error(str(event.instance))))
            return
        if event.kind is Kind.LOAD and instance.residency is Residency.FAILED:
            instance.retry_at = now  # somebody asks for it in so many words: no back-off
        error = refusal(state, instance, event.kind, now)
        if error is not None:
            out.append(Reject(event.request, error))
            return
        waiting = Waiting(
            id=event.request,
            instance=event.instance,
            kind=event.kind,
            priority=event.priority,
            arrived_at=now,
            due_at=now + event.max_wait_s,
            timeout_at=now + event.timeout_s,
            weight=weight_of(event.priority, state.policy),
            client=event.client,
            own_limit=event.own_limit,
        )
        state.requests[waiting.id] = waiting
        if event.kind is Kind.LIGHT or event.kind is Kind.HELD_OPEN:
            waiting.forwarded_at = now
            instance.light[waiting.id] = waiting
            out.append(Forward(waiting.id, instance.id))
            return
        if event.kind is Kind.WORK:
            instance.estimates.arrived(now)
            state.client_asked(waiting.client, instance, now)
            free_slot = len(instance.running) < instance.spec.slots
            if instance.residency is Residency.READY and free_slot and not len(instance.queue):
                forward(instance, waiting, now, out)
                return
        if not len(instance.queue):
            instance.attach_tried = False
        instance.queue.add(waiting)
        self._decide(now, out)

    def _on_client_left(self, event: ClientLeft, out: list[Command]) -> None:
        waiting = self.state.requests.get(event.request)
        if waiting is None:
            return  # crossed with our answer
        if waiting.forwarded_at is None:
            del self.state.requests[waiting.id]
            self.state.instances[waiting.instance].queue.give_up(waiting.id, event.now)
            self._decide(event.now, out)
        else:
            self._end(waiting, event.now, out)

    def _on_first_byte(self, event: FirstByte, out: list[Command]) -> None:
        waiting = self.state.requests.get(event.request)
        if waiting is not None and waiting.forwarded_at is not None:
            self._note_first_byte(waiting, event.now)

    def _note_first_byte(self, waiting: Waiting, at: float) -> None:
        """Learn how long a client that was answered here before has waited for its answer to begin."""
        if waiting.answering or waiting.kind is not Kind.WORK:
            return
        waiting.answering = True
        instance = self.state.instances[waiting.instance]
        last_answer = instance.estimates.think.last_answer(waiting.client) if waiting.client else None
        if last_answer is not None:
            seconds = at - (waiting.forwarded_at or at)
            instance.estimates.first_byte(seconds, warm=last_answer >= instance.loaded_at)

    def _on_request_ended(self, event: RequestEnded, out: list[Command]) -> None:
        waiting = self.state.requests.get(event.request)
        if waiting is None or waiting.forwarded_at is None:
            raise InvalidTransition(f"request {event.request} ended, but it is not running")
        self._end(waiting, event.now, out)

    def _end(self, waiting: Waiting, now: float, out: list[Command]) -> None:
        state = self.state
        instance = state.instances[waiting.instance]
        del state.requests[waiting.id]
        if waiting.kind is Kind.WORK:
            del instance.running[waiting.id]
            instance.estimates.service.add(now - (waiting.forwarded_at or now))
            state.client_answered(waiting, now)
            instance.last_used = now
            if not instance.running and instance.residency in UP:
                instance.idle_since = now
        else:
            del instance.light[waiting.id]
        waits = instance.gate is not None or instance.order is not None or instance.spec.idle_unload_s is not None
        if waits or state.shutting_down or state.total.waiting:
            self._decide(now, out)

    # -- reports about instances -------------------------------------------------------------------------------

    def _on_instance_ready(self, event: InstanceReady, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.BECAME_READY)
        if instance is None:
            return
        before = instance.residency
        instance.attached = event.attached
        if event.soft_unload is not None:
            instance.soft_unload = event.soft_unload
        self.state.move(instance, Move.BECAME_READY, event.now)
        if before is Residency.ATTACHING:
            on_attached(self.state, instance)
        else:
            self._loaded(instance, before, event.now, out)
        instance.failure = None
        instance.out_of_memory = 0
        instance.attach_tried = False
        instance.ready_at = instance.last_used = event.now
        if not instance.running:
            instance.idle_since = event.now
        self._decide(event.now, out)

    def _loaded(self, instance: Instance, before: Residency, now: float, out: list[Command]) -> None:
        """A start or a wake succeeded: learn how long it took."""
        seconds = now - instance.order_given_at
        instance.loaded_at, instance.load_began_at = now, instance.order_given_at
        if before is Residency.WAKING:
            instance.estimates.wake.add(seconds)
        else:
            instance.estimates.loaded(seconds, instance.cached_at_start)
            instance.cached, instance.read_ahead, instance.read_whole = 1.0, False, False
        settle(instance, "ready", now, out)

    def _on_start_deferred(self, event: StartDeferred, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.DEFERRED)
        if instance is None:
            return
        believe(self.state, event)
        self.state.move(instance, Move.DEFERRED, event.now)
        settle(instance, "deferred: the memory was measured to be taken by others", event.now, out)
        self._decide(event.now, out)

    def _on_pools_measured(self, event: PoolsMeasured, out: list[Command]) -> None:
        believe(self.state, event)
        self._decide(event.now, out)

    def _on_pools_found(self, event: PoolsFound, out: list[Command]) -> None:
        if any(instance.residency not in GONE for instance in self.state.instances.values()):
            raise InvalidTransition("pools were found after the first load")
        self.state.ledger = Ledger(event.capacity)
        self._decide(event.now, out)

    def _on_footprint_expected(self, event: FootprintExpected, out: list[Command]) -> None:
        instance = self.state.instances.get(event.instance)
        if instance is not None and instance.residency in GONE:  # what is loaded is measured
            self.state.expect(instance, event.placements, event.unloaded, whole=event.whole, sure=event.sure)
            self._decide(event.now, out)

    def _on_footprint_measured(self, event: FootprintMeasured, out: list[Command]) -> None:
        instance = self.state.instances.get(event.instance)
        if instance is not None:
            self.state.measure(instance, event.footprint, event.unloaded)
            self._decide(event.now, out)

    def _on_files_seen(self, event: FilesSeen, out: list[Command]) -> None:
        instance = self.state.instances.get(event.instance)
        if instance is None:  # removed while its files were read
            if event.finished and self.state.reading == event.instance:
                self.state.reading = None
                self._decide(event.now, out)
            return
        more = event.share - (instance.cached or 0.0)
        changed = (more if event.finished else abs(more)) > READ_AGAIN_SHARE  # a reading must get on to go on
        if changed:
            instance.read_ahead = False
        if event.finished and event.share >= WELL_CACHED:
            instance.read_whole = True
        instance.cached = event.share
        instance.estimates.size_known(event.size_bytes)
        ended = event.finished and self.state.reading == instance.id
        if ended:
            self.state.reading = None
        if (ended or (changed and len(instance.queue))) and self.state.total.waiting:
            self._decide(event.now, out)

    def _on_attach_offered(self, event: AttachOffered, out: list[Command]) -> None:
        instance = self.state.instances.get(event.instance)
        if instance is None:
            return
        if not self.state.shutting_down and instance.residency in GONE and instance.order is None:
            self.state.plans.pop(instance.id, None)  # what was to be started is there
            attach(self.state, instance, event.now, out)

    def _on_attach_missed(self, event: AttachMissed, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.NOT_ATTACHED)
        if instance is None:
            return
        on_missed(self.state, instance, event, out)
        self._decide(event.now, out)

    def _on_start_failed(self, event: StartFailed, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.START_FAILED)
        if instance is None:
            return
        again = tries_again(self.state, instance, event.error)
        self.state.move(instance, Move.START_FAILED, event.now)
        settle(instance, event.error.message, event.now, out)
        note_failure(self.state, instance, event.error, event.now)
        if again:
            instance.retry_at = event.now
        else:
            self._reject_waiters(instance, event.now, out)
        self._decide(event.now, out)

    def _on_process_exited(self, event: ProcessExited, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.EXITED)
        if instance is None:
            return
        was_up = instance.residency in UP
        self.state.move(instance, Move.EXITED, event.now)
        if was_up and event.now - instance.ready_at >= self.state.policy.healthy_after_s:
            instance.failures = 0
        note_failure(self.state, instance, event.error, event.now)
        if instance.retry_at > event.now:
            self._reject_waiters(instance, event.now, out)
        self._decide(event.now, out)

    def _reject_waiters(self, instance: Instance, now: float, out: list[Command]) -> None:
        if instance.retirement is not None:
            return  # they wait for the one that follows
        for waiting in instance.queue.pop_all():
            del self.state.requests[waiting.id]
            out.append(Reject(waiting.id, failed_recently(instance, now)))

    def _on_instance_unloaded(self, event: InstanceUnloaded, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.UNLOADED)
        if instance is None:
            return
        self.state.move(instance, Move.UNLOADED, event.now)
        instance.estimates.unload.add(event.now - instance.order_given_at)
        self._decide(event.now, out)

    def _on_unload_failed(self, event: UnloadFailed, out: list[Command]) -> None:
        instance = self._reported(event.instance, event.generation, Move.UNLOAD_FAILED)
        if instance is None:
            return
        if instance.attached:
            on_unload_refused(self.state, instance, event, out)
            self._decide(event.now, out)
            return
        self.state.move(instance, Move.UNLOAD_FAILED, event.now)
        out.append(StopInstance(instance.id, instance.generation))
        out.append(Record(self.state.decided(event.now, None, ((instance.id, Mode.STOP),), "unload failed")))
        self._decide(event.now, out)

    def _on_instance_gone(self, event: InstanceGone, out: list[Command]) -> None:
        instance = self.state.instances[event.instance]
        if event.generation != instance.generation:
            raise InvalidTransition(f"{event.instance} generation {event.generation} gone twice")
        was_ours = not instance.attached
        if instance.dying:
            self.state.move(instance, Move.GONE_AFTER_FAILURE, event.now)
        else:
            self.state.move(instance, Move.GONE, event.now)
            if was_ours:
                instance.estimates.stop.add(event.now - instance.order_given_at)
        instance.dying = False
        self._decide(event.now, out)

    def _on_busy_probed(self, event: BusyProbed, out: list[Command]) -> None:
        instance = self.state.instances.get(event.instance)
        if instance is None or event.generation != instance.generation or instance.probe is not Probe.ASKED:
            return  # a request was forwarded meanwhile, or the instance is on its way out: the answer is stale
        instance.probe = Probe.BUSY if event.busy else Probe.IDLE
        instance.probed_at = event.now
        if event.busy:
            instance.busy_seen_at = instance.last_used = event.now
        self._decide(event.now, out)

    def _reported(self, instance_id: InstanceId, generation: int, move: Move) -> Instance | None:
        """The instance a report is about, or None where the report crossed with an order of ours."""
        instance = self.state.instances.get(instance_id)
        if instance is None:
            raise InvalidTransition(f"{instance_id} reports {move.value!r} and was forgotten")
        if generation > instance.generation:
            raise InvalidTransition(f"{instance_id} reports {move.value!r} for a start that was never ordered")
        if generation < instance.generation or (instance.residency, move) in CROSSINGS:
            return None
        return instance

    # -- the operator ------------------------------------------------------------------------------------------

    def _steered(self, handler: Steering) -> Callable[[Any, list[Command]], None]:
        """An operator's wish is noted, then everything is decided anew."""

        def handle(event: Any, out: list[Command]) -> None:
            handler(self.state, event, out)
            self._decide(event.now, out)

        return handle

    def _on_timer_fired(self, event: TimerFired, out: list[Command]) -> None:
        self.state.timer_at = None
        self._decide(event.now, out)

    def _on_shutdown_requested(self, event: ShutdownRequested, out: list[Command]) -> None:
        state = self.state
        if state.drain_until is None or event.drain_until < state.drain_until:
            state.drain_until = event.drain_until
        state.shutting_down = True
        state.plans.clear()
        for instance in state.instances.values():
            for waiting in instance.queue.pop_all():
                del state.requests[waiting.id]
                error = ShuttingDown("the juggler is shutting down", endpoint=instance.spec.name, phase="queued")
                out.append(Reject(waiting.id, error))
            if instance.order is not None:
                out.extend(OrderDone(order, "shutting down") for order in instance.order.ids)
                instance.order = None
        self._decide(event.now, out)

    # -- deciding ----------------------------------------------------------------------------------------------

    def _decide(self, now: float, out: list[Command]) -> None:
        state = self.state
        decision_pass = DecisionPass(state, now, out)
        if state.shutting_down:
            self._wind_down(decision_pass)
        else:
            self._expire(decision_pass)
            decision_pass.run()
        if decision_pass.wake_at != state.timer_at:
            state.timer_at = decision_pass.wake_at
            out.append(SetTimer(state.timer_at))

    def _expire(self, decision_pass: DecisionPass) -> None:
        """Refuse whoever waited too long."""
        now = decision_pass.now
        for instance in self.state.instances.values():
            while (timeout_at := instance.queue.earliest_timeout()) is not None:
                if timeout_at > now:
                    decision_pass.note(timeout_at)
                    break
                waiting = instance.queue.next_timeout(now)
                del self.state.requests[waiting.id]
                error = QueueTimeout(
                    queue_timeout_text(instance.spec.name, now - waiting.arrived_at, waiting.own_limit),
                    endpoint=instance.spec.name,
                    phase="starting" if instance.residency not in UP | GONE | LEAVING else "queued",
                    **queue_view(self.state, instance, now),
                )
                decision_pass.out.append(Reject(waiting.id, error))

    def _wind_down(self, decision_pass: DecisionPass) -> None:
        """Stop whatever is idle; once the drain is over, everything."""
        state, now = self.state, decision_pass.now
        assert state.drain_until is not None
        over = now >= state.drain_until
        for instance in state.instances.values():
            if instance.residency in GONE or instance.residency is Residency.STOPPING:
                continue
            if not over and self._works(instance, decision_pass):
                decision_pass.note(state.drain_until)
            else:
                theirs = instance.attached or instance.residency is Residency.ATTACHING
                decision_pass.send_away([(instance, Mode.STOP)], cause="let go" if theirs else "shutdown")
        if not state.finished and all(one.residency in GONE for one in state.instances.values()):
            state.finished = True
            decision_pass.out.append(FinishShutdown())

    def _works(self, instance: Instance, decision_pass: DecisionPass) -> bool:
        """Whether something would be lost if a process of ours were stopped now."""
        if instance.residency not in UP or instance.attached:
            return bool(instance.running) and instance.residency in UP
        since = instance.idle_since if instance.idle_since is not None else instance.ready_at
        return bool(instance.running) or (instance.spec.probes_busy and not decision_pass.says_idle(instance, since))

    def _story(self) -> str:
        last = list(self.state.story)[-STORY_SHOWN:]
        return "; ".join(f"#{number} {event} -> {list(commands)}" for number, event, commands in last) or "nothing"

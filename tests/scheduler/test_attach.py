"""Servers that somebody else runs: found before anything is started, asked to unload, never stopped."""

from juggler.errors import AttachFailed, BackendExited
from juggler.ids import PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.ledger import EXCLUSIVE_POOL
from juggler.scheduler.state import InstanceSpec
from juggler.scheduler.transitions import Residency
from tests.scheduler.script import A, B, C, Script, exclusive, kinds

GPU = PoolId("gpu0")


class AttachScript(Script):
    """A script that knows the reports of attached servers."""

    def offer(self, name: str) -> list[c.Command]:
        return self.post(e.AttachOffered(self.now, self.at(name).id))  # type: ignore[arg-type]

    def found(self, name: str, soft_unload: bool | None = None) -> list[c.Command]:
        instance = self.at(name)  # type: ignore[arg-type]
        return self.post(e.InstanceReady(self.now, instance.id, instance.generation, True, soft_unload))

    def missed(self, name: str) -> list[c.Command]:
        instance = self.at(name)  # type: ignore[arg-type]
        error = AttachFailed(f"nothing answers for {name}")
        return self.post(e.AttachMissed(self.now, instance.id, instance.generation, error))

    def refused(self, name: str, detail: str = "it said no") -> list[c.Command]:
        instance = self.at(name)  # type: ignore[arg-type]
        return self.post(e.UnloadFailed(self.now, instance.id, instance.generation, detail))

    def adopt(self, name: str) -> None:
        """Found at the start, with room for it."""
        (command,) = self.offer(name)
        assert isinstance(command, c.AttachInstance)
        assert self.found(name) == []


def attaching(name: str, *, starts: bool = False, soft_unload: bool = True, **more: object) -> InstanceSpec:
    return exclusive(name, attaches=True, starts=starts, soft_unload=soft_unload, probes_busy=False, **more)  # type: ignore[arg-type]


def test_a_request_finds_the_server_and_takes_nobodys_memory_to_look() -> None:
    """B is loaded; looking for A evicts nobody, and that A is down is known without a swap."""
    script = AttachScript(attaching(A), exclusive(B))
    script.load(B)
    assert script.arrive(A) == [c.AttachInstance(A, 1)]
    (refused,) = script.missed(A)
    assert isinstance(refused, c.Reject)
    assert refused.error.code == "backend_unreachable"
    assert script.at(B).residency is Residency.READY


def test_nothing_is_held_back_when_it_comes_back() -> None:
    """No back-off: each request looks again, for a look is cheap."""
    script = AttachScript(attaching(A))
    for _ in range(3):
        assert kinds(script.arrive(A)) == ["AttachInstance"]
        assert kinds(script.missed(A)) == ["Reject"]
    script.arrive(A)
    assert kinds(script.found(A)) == ["Forward"]


def test_attach_first_start_else() -> None:
    """With something to start the request goes on to an ordinary start, which makes room first."""
    script = AttachScript(attaching(A, starts=True), exclusive(B))
    script.load(B)
    assert script.arrive(A) == [c.AttachInstance(A, 1)]
    assert script.missed(A) == [c.StopInstance(B, 1)]
    assert script.gone(B) == [c.StartInstance(A, 2)]
    assert script.ready(A) == [c.Forward(RequestId(2), A)]
    script.end(2)
    # What was started is stopped or unloaded as any other; the next load looks for the attached server again.
    assert script.arrive(B) == [c.UnloadInstance(A, 2)]
    assert script.post(e.UnloadFailed(script.now, A, 2)) == [c.StopInstance(A, 2)]
    assert script.gone(A) == [c.StartInstance(B, 2)]
    script.ready(B)
    script.end(3)
    assert script.arrive(A) == [c.AttachInstance(A, 3)]


def test_an_attached_server_is_unloaded_for_others_and_woken_for_itself() -> None:
    script = AttachScript(attaching(A), exclusive(B))
    script.adopt(A)
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]
    assert script.unloaded(A) == [c.StartInstance(B, 1)]
    script.ready(B)
    script.end(1)
    assert script.arrive(A) == [c.StopInstance(B, 1)]
    assert script.gone(B) == [c.WakeInstance(A, 1)]
    assert kinds(script.found(A)) == ["Forward"]


def test_one_that_refuses_to_unload_is_named_and_not_stopped() -> None:
    """Who needs its memory hears whose fault it is, at once; after a pause it is asked again."""
    script = AttachScript(attaching(A), exclusive(B))
    script.adopt(A)
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]
    (refused,) = script.refused(A)
    assert isinstance(refused, c.Reject)
    assert refused.error.code == "memory_held"
    assert "'a'" in refused.error.message
    assert "it said no" in refused.error.message
    assert refused.error.retry_after_s == 10
    assert script.at(A).residency is Residency.READY
    assert kinds(script.arrive(A)) == ["Forward"]  # it still serves
    script.end(2)
    assert kinds(script.arrive(B)) == ["Reject"]
    script.tick(10)
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]
    assert script.unloaded(A) == [c.StartInstance(B, 1)]


def test_another_victim_is_taken_where_one_refuses() -> None:
    """Only who has no other way is refused."""
    specs = [
        InstanceSpec(A, "a", {GPU: 10}, attaches=True, starts=False, soft_unload=True),
        InstanceSpec(B, "b", {GPU: 10}),
        InstanceSpec(C, "c", {GPU: 10}),
    ]
    script = AttachScript(*specs, capacity={GPU: 20})
    script.adopt(A)
    script.load(B)
    script.at(A).last_used = -1.0
    assert script.arrive(C) == [c.UnloadInstance(A, 1)]
    assert script.refused(A) == [c.StopInstance(B, 1)]
    assert script.gone(B) == [c.StartInstance(C, 1)]


def test_servers_that_come_on_top_of_others_are_unloaded_first() -> None:
    """Two that run already on a pool for one: the first counts as loaded, the second gives way and waits its turn."""
    script = AttachScript(attaching(A), attaching(B))
    script.adopt(A)
    assert kinds(script.offer(B)) == ["AttachInstance"]
    assert script.found(B) == [c.UnloadInstance(B, 1)]
    assert script.unloaded(B) == []
    assert kinds(script.arrive(A)) == ["Forward"]
    script.end(1)
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]
    assert script.unloaded(A) == [c.WakeInstance(B, 1)]


def test_one_on_top_that_refuses_serves_all_the_same() -> None:
    """It is there, it answers, nobody can help it; but it is not asked in a circle."""
    script = AttachScript(attaching(A), attaching(B))
    script.adopt(A)
    script.offer(B)
    assert script.found(B) == [c.UnloadInstance(B, 1)]
    assert script.refused(B) == []
    assert kinds(script.arrive(B)) == ["Forward"]
    assert script.tick(60) == []


def test_one_that_cannot_unload_counts_for_what_was_declared() -> None:
    """Nothing declared: nothing counted, for refusing everybody else for ever would help nobody."""
    script = AttachScript(attaching(A, soft_unload=False), exclusive(B))
    script.adopt(A)
    assert script.arrive(B) == [c.StartInstance(B, 1)]
    kept = attaching(A, soft_unload=False, footprint_kept={EXCLUSIVE_POOL: 1})
    script = AttachScript(kept, exclusive(B))
    script.adopt(A)
    (refused,) = script.arrive(B)
    assert isinstance(refused, c.Reject)
    assert refused.error.code == "does_not_fit"
    assert "attached 'a'" in refused.error.message
    assert "`unload`" in (refused.error.hint or "")


def test_what_it_can_is_known_when_it_is_found() -> None:
    """koboldcpp unloads in admin mode only, and whether it runs in it shows when it answers."""
    script = AttachScript(attaching(A, soft_unload=False), exclusive(B))
    script.offer(A)
    assert script.found(A, soft_unload=True) == []
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]


def test_its_death_is_noticed_and_what_can_be_started_is() -> None:
    script = AttachScript(attaching(A, starts=True))
    script.adopt(A)
    script.post(e.ProcessExited(script.now, A, 1, BackendExited("gone")))
    script.gone(A)
    assert script.arrive(A) == [c.AttachInstance(A, 2)]
    assert script.missed(A) == [c.StartInstance(A, 3)]
    assert kinds(script.ready(A)) == ["Forward"]


def test_a_failing_start_backs_off_also_behind_an_attach() -> None:
    """Each request looks for the server; the start in its place is not tried again before its time."""
    script = AttachScript(attaching(A, starts=True))
    for pause in (0, 1):
        script.arrive(A)
        assert kinds(script.missed(A)) == ["StartInstance"]
        assert kinds(script.fail(A)) == ["Reject"]
        script.gone(A)
        assert script.at(A).retry_at == script.now + pause
    assert kinds(script.arrive(A)) == ["AttachInstance"]
    (refused,) = script.missed(A)
    assert isinstance(refused, c.Reject)
    assert refused.error.code == "backend_start_failed"


def test_orders_of_the_operator_never_stop_it() -> None:
    script = AttachScript(attaching(A))
    script.adopt(A)
    assert script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP)) == [c.UnloadInstance(A, 1)]
    (done,) = script.unloaded(A)
    assert done == c.OrderDone(1, "unloaded; an attached server is never stopped")
    script = AttachScript(attaching(A, soft_unload=False))
    script.adopt(A)
    (done,) = script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.UNLOAD))
    assert isinstance(done, c.OrderDone)
    assert "attached" in done.detail
    assert kinds(script.arrive(A)) == ["Forward"]


def test_a_refused_order_is_told() -> None:
    script = AttachScript(attaching(A))
    script.adopt(A)
    script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.UNLOAD))
    assert script.refused(A) == [c.OrderDone(1, "it did not free its memory: it said no")]


def test_shutdown_lets_go_of_it() -> None:
    """``StopInstance`` is the order for it; the supervisor kills nothing then."""
    script = AttachScript(attaching(A), attaching(B))
    script.adopt(A)
    script.offer(B)
    out = script.post(e.ShutdownRequested(script.now, script.now + 30))
    assert out == [c.StopInstance(A, 1), c.StopInstance(B, 1)]
    assert [one.cause for one in script.scheduler.state.decisions] == ["let go", "let go"]
    script.gone(A)
    assert kinds(script.gone(B)) == ["FinishShutdown"]
    assert script.offer(A) == []


def test_a_request_that_leaves_during_the_look() -> None:
    script = AttachScript(attaching(A, starts=True))
    script.arrive(A)
    script.leave(1)
    assert script.missed(A) == []
    assert script.at(A).residency is Residency.STOPPED
    assert kinds(script.arrive(A)) == ["AttachInstance"]

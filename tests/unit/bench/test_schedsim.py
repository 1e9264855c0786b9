"""The scheduling simulator: its machine, its models of other programs on hand-made scripts, and its tables."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from bench import scheduling
from bench.schedsim.files import PageCache
from bench.schedsim.juggler_policy import Juggler
from bench.schedsim.marks import judge
from bench.schedsim.measures import geometric_mean, measure, quantile, ratio
from bench.schedsim.model import GB, Client, Machine, Model, Request, SoftUnload, Turn, Workload
from bench.schedsim.policies import BASE, POLICIES, maker
from bench.schedsim.policy import Policy
from bench.schedsim.report import losses, ratio_table
from bench.schedsim.rivals.large_model_proxy import LargeModelProxy, LargeModelProxyDefault
from bench.schedsim.rivals.llama_swap import LlamaSwap, LlamaSwapCosts, LlamaSwapDefault
from bench.schedsim.rivals.naive import Naive
from bench.schedsim.rivals.ollama import Ollama, OllamaDefault
from bench.schedsim.study import Study, Task, run_task
from bench.schedsim.workloads import DRAWN, draw
from bench.schedsim.world import Phase, World

EXACT = Machine(memory_bytes=24 * GB, load_noise=0.0)
RIVALS = (LlamaSwap, LargeModelProxy, Ollama)


def model(name: str, memory_gb: int, file_gb: float = 9.0, slots: int = 4) -> Model:
    """Starts in 2 s from nothing and stops in 0.8 s: 6.5 s cold with 9 GB, 3 s from the page cache."""
    return Model(name, int(file_gb * GB), memory_gb * GB, slots=slots)


def one(name: str, at: float, target: str, service_s: float = 1.0, *, first_s: float = 0.0) -> Client:
    return Client(name, (Turn(target, at, first_s, service_s),))


def steady(name: str, target: str, count: int, every_s: float, service_s: float) -> Client:
    """An open loop."""
    return Client(name, tuple(Turn(target, every_s, 0.0, service_s) for _ in range(count)), open=True)


def ran(policy: Callable[[World], Policy], models: list[Model], clients: list[Client], **more: object) -> World:
    settings = {"machine": EXACT, "warm_files": True} | more
    world = World(Workload("script", tuple(models), tuple(clients), **settings), 0, policy)  # type: ignore[arg-type]
    world.run()
    return world


def waits(world: World) -> dict[str, float]:
    """Time to first byte by client (of its last request)."""
    return {
        request.client.name: round(request.first_byte_at - request.arrived_at, 3)
        for request in world.requests
        if request.first_byte_at is not None
    }


class Manual(Policy):
    """Loads what is asked for and hands over; the script does the rest."""

    name = "manual"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.waiting: list[Request] = []

    def arrived(self, request: Request) -> None:
        self.waiting.append(request)
        process = self.world.processes.get(request.model)
        if process is None:
            self.world.start(request.model)
        elif process.phase is Phase.UP:
            self.ready(request.model)

    def ready(self, model: str) -> None:
        mine = [one for one in self.waiting if one.model == model]
        self.waiting = [one for one in self.waiting if one.model != model]
        for request in mine:
            self.world.hand(request)


# -- the machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warm", "expected"), [(False, 2 + 9 / 2), (True, 2 + 9 / 9)])
def test_load_takes_the_start_and_the_reading_of_the_file(warm: bool, expected: float) -> None:
    world = ran(Manual, [model("a", 10)], [one("x", 0.0, "a", first_s=0.5)], warm_files=warm)
    assert waits(world)["x"] == pytest.approx(expected + 0.5)
    assert world.swaps == 1
    assert world.swap_s == pytest.approx(expected)


def test_two_loads_share_the_disk() -> None:
    clients = [one("x", 0.0, "a"), one("y", 0.0, "b")]
    world = ran(Manual, [model("a", 10, 4), model("b", 10, 8)], clients, warm_files=False)
    assert waits(world) == {"x": pytest.approx(2 + 4), "y": pytest.approx(2 + 4 + 2)}  # 1 GB/s each, then 2 GB/s


def test_backend_works_on_its_slots_and_queues_the_rest() -> None:
    clients = [one(name, 0.0, "a", service_s=10.0) for name in "xyz"]
    world = ran(Manual, [model("a", 10, slots=2)], clients)
    assert waits(world) == {"x": 3.0, "y": 3.0, "z": 13.0}
    assert measure(world).served == pytest.approx(20 / 23)


def test_prompt_is_lost_by_a_reload_and_only_by_it() -> None:
    turns = [("a", 0.0), ("a", 1.0), ("b", 1.0), ("a", 1.0)]
    client = Client("x", tuple(Turn(name, think, 0.5, 1.0, lost_s=7.0) for name, think in turns))
    world = ran(LlamaSwap, [model("a", 20), model("b", 20)], [client])
    found = [round((request.first_byte_at or 0) - request.arrived_at, 3) for request in world.requests]
    swap = 0.8 + 3.0
    assert found == [3.0 + 7.5, 0.5, swap + 7.5, swap + 7.5]


def test_open_clients_do_not_wait_for_answers_and_closed_ones_do() -> None:
    turns = tuple(Turn("a", 1.0, 0.0, 5.0) for _ in range(3))
    world = ran(Manual, [model("a", 10)], [Client("open", turns, open=True), Client("closed", turns)])
    arrived = [(request.client.name, request.arrived_at) for request in world.requests]
    assert [at for name, at in arrived if name == "open"] == [1.0, 2.0, 3.0]
    assert [at for name, at in arrived if name == "closed"] == [1.0, 10.0, 16.0]


def test_impossible_orders_are_errors() -> None:
    class Greedy(Manual):
        def arrived(self, request: Request) -> None:
            self.world.start(request.model)

    with pytest.raises(RuntimeError, match="does not fit"):
        ran(Greedy, [model("a", 20), model("b", 20)], [one("x", 0.0, "a"), one("y", 1.0, "b")])

    class Rude(Manual):
        def arrived(self, request: Request) -> None:
            if request.id == 1:
                super().arrived(request)
            else:
                self.world.stop("a")

    with pytest.raises(RuntimeError, match="cannot be stopped"):
        ran(Rude, [model("a", 20)], [one("x", 0.0, "a", service_s=10.0), one("y", 5.0, "a")])


def test_requests_without_an_answer_are_an_error() -> None:
    class Deaf(Policy):
        name = "deaf"

        def arrived(self, request: Request) -> None:
            pass

    with pytest.raises(RuntimeError, match="1 requests were never answered"):
        ran(Deaf, [model("a", 10)], [one("x", 0.0, "a")])


# -- files ---------------------------------------------------------------------------------------------------------


def test_cache_drops_the_least_recently_read_and_first_what_may_go_first() -> None:
    cache = PageCache(30)
    for name in "abc":
        cache.add(name, 10)
    cache.add("d", 5)
    assert [cache.held(name) for name in "abcd"] == [5, 10, 10, 5]
    cache.add("e", 8, drop_first={"c"})
    assert [cache.held(name) for name in "abcde"] == [5, 10, 2, 5, 8]
    cache.resize(10)
    assert sum(cache.held(name) for name in "abcde") == 10


def test_cyclic_scan_of_more_than_fits_finds_nothing() -> None:
    cache = PageCache(30)
    cache.add("a", 20)
    cache.add("b", 20)  # leaves 10 of a
    assert cache.hits("a", 20) == 0
    roomy = PageCache(45)
    roomy.add("a", 20)
    roomy.add("b", 20)
    roomy.add("c", 10)  # leaves 15 of a
    assert roomy.hits("a", 20) == 0  # a is the oldest: its own pages go while its beginning comes in
    assert roomy.hits("c", 10) == 10


def test_read_ahead_is_cached_and_ends_when_a_load_begins() -> None:
    class Ahead(Manual):
        ended_at = 0.0

        def __init__(self, world: World) -> None:
            super().__init__(world)
            world.read_ahead("b")

        def read_ended(self, model: str) -> None:
            Ahead.ended_at = self.world.now

    models = [model("a", 10, 9), model("b", 10, 9)]
    world = ran(Ahead, models, [one("x", 20.0, "b")], warm_files=False)
    assert Ahead.ended_at == pytest.approx(4.5)
    assert waits(world)["x"] == pytest.approx(3.0)
    world = ran(Ahead, models, [one("x", 2.0, "b")], warm_files=False)
    assert Ahead.ended_at == pytest.approx(2.0)
    assert waits(world)["x"] == pytest.approx(2 + 4 / 9 + 5 / 2, abs=0.001)


# -- rivals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["agents-cached", "burst", "chat-batch", "ping-pong"])
def test_on_two_exclusive_models_all_rivals_do_the_same(name: str) -> None:
    found = [run_task(Task(name, 3, (policy.name,)))[policy.name] for policy in (LlamaSwap, Ollama)]
    assert found[0] == found[1]


@pytest.mark.parametrize("policy", RIVALS)
def test_rivals_let_a_model_with_overlapping_requests_stay_for_ever(policy: type[Policy]) -> None:
    clients = [steady("busy", "a", 100, 4.0, 5.0), one("starved", 10.0, "b")]
    world = ran(policy, [model("a", 20), model("b", 20)], clients)
    assert waits(world)["starved"] == pytest.approx(405 - 10 + 0.8 + 3.0)


def test_juggler_does_not() -> None:
    clients = [steady("busy", "a", 100, 4.0, 5.0), one("starved", 10.0, "b")]
    world = ran(Juggler, [model("a", 20), model("b", 20)], clients)
    assert waits(world)["starved"] < 60 + 5 + 4


def test_llama_swap_serves_the_resident_model_before_it_swaps() -> None:
    clients = [one(f"c{n}", 0.01 * n, "ab"[n % 2], service_s=10.0) for n in range(8)]
    assert ran(LlamaSwap, [model("a", 20), model("b", 20)], clients).swaps == 2


def test_llama_swap_takes_the_first_set_also_where_its_victim_is_busy() -> None:
    """``a`` works, ``b`` is idle, ``c`` could be beside either; the set {c, b} comes before {c, a}."""
    models = [model("c", 12), model("b", 12), model("a", 12)]
    clients = [one("x", 0.0, "a", service_s=50.0), one("y", 0.0, "b"), one("z", 10.0, "c")]
    world = ran(LlamaSwap, models, clients)
    assert waits(world)["z"] == pytest.approx(3.0 + 50.0 - 10.0 + 0.8 + 3.0)
    assert waits(ran(LargeModelProxy, models, clients))["z"] == pytest.approx(0.8 + 3.0)
    assert waits(ran(Juggler, models, clients))["z"] < 10.0


def test_llama_swap_obeys_evict_costs() -> None:
    models = [model("c", 12), model("b", 12, 11), model("a", 12, 2)]
    clients = [one("x", 0.0, "a"), one("y", 0.0, "b"), one("z", 20.0, "c"), one("again", 60.0, "b")]
    assert waits(ran(LlamaSwap, models, clients))["again"] == pytest.approx(0.0)  # {c, b}: a goes
    reordered = [models[0], models[2], models[1]]
    assert waits(ran(LlamaSwap, reordered, clients))["again"] > 3.0  # {c, a}: b goes
    assert waits(ran(LlamaSwapCosts, reordered, clients))["again"] == pytest.approx(0.0)


def test_llama_swap_default_answers_429_beyond_ten_and_swaps_one_at_a_time() -> None:
    small = [model("a", 2), model("b", 2)]
    clients = [one(f"c{n}", 0.0, "a", service_s=10.0) for n in range(14)]
    assert sum(request.refused for request in ran(LlamaSwapDefault, small, clients).requests) == 4
    world = ran(LlamaSwapDefault, small, [one("x", 0.0, "a"), one("y", 10.0, "b"), one("z", 20.0, "a")])
    assert world.swaps == 3


def test_large_model_proxy_stops_the_least_recently_used_one_at_a_time() -> None:
    models = [model("a", 8), model("b", 8), model("c", 8), model("d", 20)]
    clients = [one("x", 0.0, "b"), one("y", 6.0, "a"), one("z", 12.0, "c"), one("w", 20.0, "d")]
    world = ran(LargeModelProxy, models, clients)
    assert waits(world)["w"] == pytest.approx(3 * 0.8 + 3.0)
    clients[3] = one("w", 20.0, "e")
    after = ran(LargeModelProxy, [*models[:3], model("e", 8)], [*clients, one("b again", 40.0, "b")])
    assert waits(after)["b again"] > 3.0  # b was the least recently used
    assert waits(ran(LargeModelProxy, [*models[:3], model("e", 8)], [*clients, one("v", 40.0, "a")]))["v"] == 0.0


def test_large_model_proxy_default_gives_up_after_120_s() -> None:
    clients = [one("busy", 0.0, "a", service_s=300.0), one("starved", 10.0, "b")]
    world = ran(LargeModelProxyDefault, [model("a", 20), model("b", 20)], clients)
    starved = world.requests[1]
    assert starved.refused
    assert starved.ended_at == pytest.approx(130.0)


def test_large_model_proxy_default_stops_idle_services_after_two_minutes() -> None:
    world = ran(
        LargeModelProxyDefault, [model("a", 20)], [one("x", 0.0, "a"), one("y", 100.0, "a"), one("z", 300.0, "a")]
    )
    assert waits(world) == {"x": 3.0, "y": 0.0, "z": 3.0}


def test_ollama_head_of_line_blocks_what_would_fit() -> None:
    models = [model("a", 14), model("b", 14), model("small", 4)]
    clients = [one("busy", 0.0, "a", service_s=100.0), one("head", 10.0, "b"), one("behind", 11.0, "small")]
    assert waits(ran(Ollama, models, clients))["behind"] > 80.0
    assert waits(ran(LlamaSwap, models, clients))["behind"] == pytest.approx(3.0)


def test_ollama_does_not_collate_its_queue() -> None:
    models = [model(name, 20) for name in "abc"]
    clients = [one("first", 0.0, "c", service_s=30.0)]
    clients += [one(f"c{n}", 5.0 + 0.1 * n, "ab"[n % 2], service_s=1.0) for n in range(8)]
    assert ran(Ollama, models, clients).swaps == 9
    assert ran(LlamaSwap, models, clients).swaps == 3


def test_ollama_chooses_idle_victims_by_name_not_by_use() -> None:
    models = [model("a", 8), model("b", 8), model("c", 8), model("d", 8)]
    clients = [one("x", 0.0, "b"), one("y", 6.0, "c"), one("z", 12.0, "a"), one("w", 20.0, "d"), one("v", 30.0, "a")]
    assert waits(ran(Ollama, models, clients))["v"] > 3.0
    assert waits(ran(LargeModelProxy, models, clients))["v"] == 0.0


def test_ollama_victim_with_bypassing_requests_never_unloads() -> None:
    clients = [steady("busy", "a", 50, 4.0, 5.0), one("head", 10.0, "b"), one("behind", 11.0, "b")]
    world = ran(Ollama, [model("a", 20), model("b", 20)], clients)
    assert min(waits(world)["head"], waits(world)["behind"]) > 180.0


def test_ollama_default_runs_one_request_at_a_time_and_forgets_idle_runners() -> None:
    clients = [one("x", 0.0, "a", service_s=10.0), one("y", 0.0, "a"), one("z", 400.0, "a")]
    world = ran(OllamaDefault, [model("a", 10)], clients)
    assert waits(world) == {"x": 3.0, "y": 13.0, "z": 3.0}
    many = [model(name, 2) for name in "abcd"]
    ask = [one(name, 10.0 * number, name) for number, name in enumerate("abcd")]
    assert waits(ran(OllamaDefault, many, ask))["d"] == pytest.approx(0.8 + 3.0)  # the fourth runner: one has to go


def test_naive_cuts_off_what_is_running() -> None:
    clients = [one("x", 0.0, "a", service_s=30.0), one("y", 10.0, "b")]
    world = ran(Naive, [model("a", 2), model("b", 2)], clients)
    assert [request.refused for request in world.requests] == [True, False]
    assert waits(world) == {"y": pytest.approx(0.8 + 3.0)}


# -- the shipped scheduler -----------------------------------------------------------------------------------------


def test_juggler_reads_the_waiting_file_ahead() -> None:
    clients = [one("x", 0.0, "a", service_s=30.0), one("y", 10.0, "b")]
    models = [model("a", 20), model("b", 20)]
    theirs, ours = (waits(ran(policy, models, clients, warm_files=False))["y"] for policy in (LlamaSwap, Juggler))
    assert ours == pytest.approx(theirs - 4.5 + 1.0)


def test_juggler_unloads_softly_where_it_can() -> None:
    soft = SoftUnload(unload_s=0.5, wake_s=0.7, residue_bytes=GB // 2, ram_bytes=9 * GB)
    models = [replace(model(name, 20), soft=soft) for name in "ab"]
    turns = tuple(Turn("ab"[n % 2], 20.0, 0.0, 1.0) for n in range(4))
    world = ran(Juggler, models, [Client("x", turns)])
    assert waits(world)["x"] == pytest.approx(0.5 + 0.7)


@pytest.mark.parametrize("name", [*DRAWN, "light-soft"])
def test_juggler_runs_every_workload(name: str) -> None:
    """One seed each: nothing is refused, every request is answered, every order possible."""
    drawn = draw(name, 0)
    world = World(drawn, 0, Juggler)
    world.run()
    expected = sum(len(client.turns) for client in drawn.clients)
    assert (len(world.requests), measure(world).refused) == (expected, 0)


# -- drawing, measuring, judging -----------------------------------------------------------------------------------


def test_equal_seeds_draw_equal_workloads_and_others_do_not() -> None:
    for name in DRAWN:
        assert draw(name, 1) == draw(name, 1)
        assert draw(name, 1) != draw(name, 2)


def test_policies_meet_the_same_arrivals_and_load_times() -> None:
    drawn = draw("zipf24", 1)
    worlds = [World(drawn, 1, policy) for policy in (LlamaSwap, LargeModelProxy)]
    for world in worlds:
        world.run()
    assert [one.arrived_at for one in worlds[0].requests] == [one.arrived_at for one in worlds[1].requests]


def test_study_is_the_same_however_it_is_run() -> None:
    tasks = [Task(name, seed, (BASE, "juggler")) for name in ("burst", "ping-pong") for seed in (0, 1)]
    digests = []
    for processes in (1, 2):
        study = Study()
        study.run(tasks, processes)
        digests.append(study.digest())
    assert digests[0] == digests[1]


def test_quantile_ratio_and_geometric_mean() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.95) == pytest.approx(9.5)
    assert (ratio(2.0, 4.0), ratio(0.0, 0.0)) == (0.5, 1.0)
    assert math.isinf(ratio(1.0, 0.0))
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_ratios_are_paired_by_seed() -> None:
    study = Study()
    study.run([Task("burst", seed, (BASE, "juggler")) for seed in range(3)], 1)
    single = [run_task(Task("burst", seed, (BASE, "juggler"))) for seed in range(3)]
    ratios = sorted(one["juggler"]["mean"] / one[BASE]["mean"] for one in single)
    assert study.ratio("burst", "juggler", "mean") == ratios[1]


def test_marks_that_are_missed_are_told() -> None:
    study = Study()
    study.run([Task("agents-prompt", 0, (BASE, "juggler"), (("kappa", "0"),))], 1)
    missed = [mark.what for mark in judge(study) if not mark.met]
    assert missed == ["agents-prompt: mean", "agents-prompt: makespan"]  # nothing is held


def test_tables_have_a_row_per_workload() -> None:
    study = Study()
    study.run([Task(name, 0, (BASE, "juggler")) for name in ("burst", "starvation")], 1)
    rows = list(ratio_table(study, "juggler", ["burst", "starvation"]))
    assert [row.split("  ")[0].split(" (")[0] for row in rows[2:]] == [
        "burst A B A B, 40 requests",
        "batch never idle + occasional user",
        "geometric mean",
    ]
    assert any("batch never idle" in line and "p95" in line for line in losses(study, ["starvation"]))


def test_unknown_names_are_told_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="no policy 'lifo': it is one of llama-swap"):
        maker("lifo", {})
    with pytest.raises(ValueError, match="no parameter 'gamma'"):
        maker("juggler", {"gamma": "1"})
    with pytest.raises(ValueError, match="read_ahead is true or false"):
        maker("juggler", {"read_ahead": "yes"})
    assert set(POLICIES) >= {"juggler", "llama-swap", "large-model-proxy", "ollama", "naive"}


def test_script_prints_the_row_and_the_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "2", "--workload", "burst", "--policy", "juggler", "--digest", "--processes", "1"]
    assert scheduling.main(arguments) == 0
    first = capsys.readouterr().out
    assert "burst A B A B" in first
    assert "PASS  nothing lost" in first
    assert scheduling.main(arguments) == 0
    assert capsys.readouterr().out == first


def test_script_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert scheduling.main(["--seeds", "1", "--workload", "burst", "--set", "gamma=1"]) == 2
    assert "no parameter 'gamma'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scheduling.main(["--seeds", "0"])

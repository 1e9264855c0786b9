"""The workloads of scheduling.md section 5, drawn from a seed. Sizes and times are plausible, not traces."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bench.schedsim.model import GB, Client, Machine, Model, SoftUnload, Turn, Workload

CARD_24 = Machine()
CARD_48 = replace(CARD_24, memory_bytes=48 * GB)
CARD_12 = replace(CARD_24, memory_bytes=12 * GB)
LITTLE_RAM = replace(CARD_24, cache_bytes=24 * GB)
"""32 GB of host memory, three quarters of it for the page cache."""

SOFT = SoftUnload(unload_s=1.0, wake_s=1.5, residue_bytes=GB // 2, ram_bytes=0)
"""A sleep that keeps the weights in host memory; that grows by the size of the file."""

Draw = Callable[[], float]


def llm(name: str, file_gb: float, *, slots: int = 4, start_s: float = 2.0) -> Model:
    """A quantised model with room for its context."""
    size = int(file_gb * GB)
    return Model(name, size, size + size // 10 + GB, start_s=start_s, slots=slots)


def _pair(file_bytes: int = 19 * GB, memory_bytes: int = 22 * GB) -> tuple[Model, Model]:
    """Two endpoints that exclude one another: quantised 32B models, if nothing else is said."""
    return (Model("a", file_bytes, memory_bytes), Model("b", file_bytes, memory_bytes))


def _about(rng: random.Random, mean: float, sigma: float = 0.5) -> Draw:
    """Log-normal seconds with this mean."""
    mu = -sigma * sigma / 2
    return lambda: mean * rng.lognormvariate(mu, sigma)


def _agent(
    name: str,
    model: str | Sequence[str],
    rng: random.Random,
    *,
    bursts: int,
    turns: int,
    think_s: float,
    service_s: float,
    pause_s: float,
    first_s: float = 0.5,
    lost_s: float = 0.0,
) -> Client:
    """Bursts of turns with a tool call's time between them, then a person's pause."""
    think, service, pause = _about(rng, think_s), _about(rng, service_s), _about(rng, pause_s, 0.7)
    models = [model] if isinstance(model, str) else model
    made = []
    for burst in range(bursts):
        for turn in range(max(1, round(rng.uniform(0.6, 1.4) * turns))):
            wait = think() if turn else pause() if burst else rng.uniform(0, 20)
            for number, one in enumerate(models):
                made.append(Turn(one, wait if number == 0 else 0.05, first_s, service(), lost_s))
    return Client(name, tuple(made))


def _closed(name: str, model: str, count: int, think: Draw, service: Draw, *, batch: bool = False) -> Client:
    return Client(name, tuple(Turn(model, think(), 0.3, service()) for _ in range(count)), batch=batch)


def _poisson(rng: random.Random, rate: float, until: float) -> Iterator[float]:
    """Gaps between the arrivals of an open loop."""
    left = until
    while left > 0:
        gap = rng.expovariate(rate)
        left -= gap
        yield gap


def _open_mix(
    rng: random.Random, shares: Sequence[tuple[str, float, Draw]], rate: float, until: float, first_s: float = 0.3
) -> tuple[Client, ...]:
    """An open loop; each request is somebody else's, its model drawn by share."""
    weights = [share for _, share, _ in shares]
    clients, now = [], 0.0
    for number, gap in enumerate(_poisson(rng, rate, until)):
        now += gap
        model, _, service = rng.choices(shares, weights)[0]
        clients.append(Client(f"one-shot {number}", (Turn(model, now, first_s, service()),)))
    return tuple(clients)


# -- the workloads -------------------------------------------------------------------------------------------------


def burst(rng: random.Random) -> Workload:
    service = _about(rng, 10.0, 0.4)
    clients = [Client(f"c{n}", (Turn("ab"[n % 2], 0.01 * n, 0.3, service()),)) for n in range(40)]
    return Workload("burst", _pair(), tuple(clients))


def _two_agents(rng: random.Random, lost_s: float = 0.0, first_s: float = 0.5) -> tuple[Client, ...]:
    return tuple(
        _agent(
            f"agent {model}",
            model,
            rng,
            bursts=6,
            turns=9,
            think_s=2.0,
            service_s=6.0,
            pause_s=20.0,
            first_s=first_s,
            lost_s=lost_s,
        )
        for model in "ab"
    )


def agents_cached(rng: random.Random) -> Workload:
    return Workload("agents-cached", _pair(), _two_agents(rng), warm_files=True)


def agents_ram(rng: random.Random) -> Workload:
    return Workload("agents-ram", _pair(), _two_agents(rng), LITTLE_RAM)


def agents_prompt(rng: random.Random) -> Workload:
    return Workload("agents-prompt", _pair(), _two_agents(rng, lost_s=8.0), warm_files=True)


def agent_shared(rng: random.Random) -> Workload:
    agent = _agent("agent", "a", rng, bursts=8, turns=10, think_s=2.5, service_s=3.0, pause_s=30.0)
    service = _about(rng, 5.0)
    shots = _open_mix(rng, [("a", 0.6, service), ("b", 0.4, service)], 1 / 7, 600)
    return Workload("agent-shared", _pair(), (agent, *shots))


def swarm(rng: random.Random) -> Workload:
    models = (llm("a", 18), llm("b", 18), llm("c", 18))
    clients = [
        _agent(f"agent {n}", "abc"[n], rng, bursts=5, turns=12, think_s=0.8, service_s=3.0, pause_s=240.0)
        for n in range(3)
    ]
    return Workload("swarm", models, tuple(clients))


def big(rng: random.Random) -> Workload:
    models = _pair(40 * GB, 44 * GB)
    clients = [
        _agent(f"agent {n}", "aab"[n], rng, bursts=4, turns=8, think_s=4.0, service_s=6.0, pause_s=40.0)
        for n in range(3)
    ]
    return Workload("big", models, tuple(clients), CARD_48)


def chat_batch(rng: random.Random) -> Workload:
    service = _about(rng, 4.0)
    clients = []
    for worker in range(12):
        clients.append(_closed(f"batch {worker}", "a", 27, lambda: rng.uniform(0, 1), service, batch=True))
    answer = _about(rng, 5.0)
    for user in range(4):
        clients.append(_closed(f"user {user}", "b", 16, _about(rng, 25.0, 0.7), answer))
    return Workload("chat-batch", _pair(), tuple(clients))


def starvation(rng: random.Random, minutes: float = 20.0) -> Workload:
    """A batch class that is never idle for this long, beside an occasional user until two thirds of it."""
    seconds, service = 60 * minutes, _about(rng, 6.0)
    workers = 8
    each = round(seconds / (6.3 * workers / 4))
    clients = [
        _closed(f"batch {n}", "a", each, lambda: rng.uniform(0.0, 0.2), service, batch=True) for n in range(workers)
    ]
    answer, now, gaps = _about(rng, 5.0), 0.0, []
    for gap in _poisson(rng, 1 / 90, seconds * 2 / 3):
        now += gap
        gaps.append(gap)
    user = tuple(Turn("b", gap, 0.3, answer()) for gap in gaps)
    return Workload("starvation", _pair(), (*clients, Client("user", user, open=True)))


def light(rng: random.Random) -> Workload:
    models = (llm("a", 19), llm("b", 17), Model("c", 16 * GB, 20 * GB, start_s=3.0, slots=1))
    word, image = _about(rng, 15.0), _about(rng, 30.0, 0.3)
    shots = _open_mix(rng, [("a", 0.4, word), ("b", 0.3, word), ("c", 0.3, image)], 1 / 32, 3000)
    return Workload("light", models, shots)


def mix(rng: random.Random) -> Workload:
    models = (
        Model("embeddings", GB, 2 * GB, start_s=1.5, stop_s=0.3, slots=8),
        Model("image", 9 * GB, 13 * GB, start_s=3.0, slots=1),
        Model("llm", 13 * GB, 16 * GB),
    )
    quick, image, word = _about(rng, 0.15), _about(rng, 12.0, 0.3), _about(rng, 6.0)
    shots = _open_mix(
        rng, [("embeddings", 0.6, quick), ("image", 0.12, image), ("llm", 0.28, word)], 1 / 5.5, 1800, 0.1
    )
    return Workload("mix", models, shots)


def rag(rng: random.Random) -> Workload:
    models = (
        Model("embed", GB, 3 * GB // 2, start_s=1.5, stop_s=0.3, slots=8),
        Model("rerank", GB, 3 * GB // 2, start_s=1.5, stop_s=0.3, slots=8),
        Model("chat", 9 * GB, 11 * GB),
    )
    clients = []
    for user in range(2):
        think, word = _about(rng, 40.0, 0.7), _about(rng, 6.0)
        turns: list[Turn] = []
        for _ in range(20):
            turns.append(Turn("embed", think(), 0.05, 0.1))
            turns.append(Turn("rerank", 0.05, 0.2, 0.1))
            turns.append(Turn("chat", 0.05, 0.6, word()))
        clients.append(Client(f"user {user}", tuple(turns)))
    return Workload("rag", models, tuple(clients), CARD_12)


def _zipf(
    rng: random.Random, sizes: Sequence[float], service_s: float, rate: float, until: float, machine: Machine
) -> Workload:
    models = tuple(llm(f"m{n}", size) for n, size in enumerate(sizes))
    service = _about(rng, service_s)
    ranks = rng.sample(range(1, len(sizes) + 1), len(sizes))  # rivals choose by name and order: those say nothing
    shares = [(f"m{n}", 1 / rank, service) for n, rank in enumerate(ranks)]
    return Workload("", models, _open_mix(rng, shares, rate, until), machine)


def zipf24(rng: random.Random) -> Workload:
    drawn = _zipf(rng, (9, 5, 13, 8, 18, 6, 10, 7), 14.0, 1 / 6.5, 2000, CARD_24)
    return replace(drawn, name="zipf24")


def zipf48(rng: random.Random) -> Workload:
    drawn = _zipf(rng, (14, 8, 19, 5, 12, 20, 9, 16, 6, 18), 14.0, 1 / 7, 1600, CARD_48)
    return replace(drawn, name="zipf48")


def overload(rng: random.Random) -> Workload:
    models = tuple(llm(name, size) for name, size in zip("abcd", (19, 17, 15, 16), strict=True))
    service = _about(rng, 5.0)
    shots = _open_mix(rng, [(name, 1.0, service) for name in "abcd"], 0.85, 600)
    return Workload("overload", models, shots)


def ping_pong(rng: random.Random) -> Workload:
    service, think = _about(rng, 4.0), _about(rng, 2.0)
    turns = tuple(Turn("ab"[n % 2], think(), 0.3, service()) for n in range(80))
    return Workload("ping-pong", _pair(), (Client("client", turns),))


def adversary(rng: random.Random) -> Workload:
    service = _about(rng, 4.5, 0.3)
    turns = tuple(Turn("ab"[n % 2], rng.uniform(4.0, 6.0), 0.3, service()) for n in range(100))
    return Workload("adversary", _pair(), (Client("client", turns, open=True),))


DRAWN: dict[str, tuple[str, Callable[[random.Random], Workload]]] = {
    "burst": ("burst A B A B, 40 requests", burst),
    "agents-cached": ("two agents, files cached", agents_cached),
    "agents-ram": ("two agents, 32 GB RAM", agents_ram),
    "agents-prompt": ("two agents, prompt cache lost by a swap", agents_prompt),
    "agent-shared": ("agent shares its endpoint with one-shot calls", agent_shared),
    "swarm": ("agent swarm, 3 models", swarm),
    "big": ("two 70B, three agents", big),
    "chat-batch": ("chat + batch", chat_batch),
    "starvation": ("batch never idle + occasional user", starvation),
    "light": ("light use, 3 exclusive endpoints", light),
    "mix": ("LLM + image + embeddings, 24 GB", mix),
    "rag": ("RAG: embed, rerank, chat on 12 GB", rag),
    "zipf24": ("8 models Zipf, 24 GB", zipf24),
    "zipf48": ("10 models Zipf, 48 GB", zipf48),
    "overload": ("overload 1.2x, 4 exclusive", overload),
    "ping-pong": ("one client A, B, A, B ...", ping_pong),
    "adversary": ("adversary: alternating open loop", adversary),
}
"""By name: a title, and how it is drawn."""

STARVATION_MINUTES = (5, 10, 20, 40)


def draw(name: str, seed: int) -> Workload:
    """The workload of this seed: one of ``DRAWN``, ``starvation-MINUTES``, or ``light-soft``.

    Raises:
        KeyError: There is no such workload.
    """
    rng = random.Random(f"{name}/{seed}")
    if name.startswith("starvation-"):
        return starvation(rng, float(name.partition("-")[2]))
    if name == "light-soft":
        return light(random.Random(f"light/{seed}")).soft(SOFT)
    return DRAWN[name][1](rng)

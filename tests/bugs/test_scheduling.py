"""Bugs 11 to 13 of the prototype (backends.md section 11): who may start and stop what."""

import threading
from pathlib import Path

from tests.contract.stand_ins import Gate
from tests.e2e.support import Answer, eventually, exclusive, running, web


def test_bug_11_requests_at_once_start_one_process_and_cut_nobody(tmp_path: Path) -> None:
    """Twenty at once for two: each is answered whole, none by a second copy."""
    gate = Gate(tmp_path)
    config = exclusive(a=web(binary=str(gate.python)), b=web("--name", "b", binary=str(gate.python)))
    with running(tmp_path, config) as juggler:
        answers: list[Answer] = []

        def ask(number: int) -> None:
            answers.append(juggler.ask("POST", f"/{'ab'[number % 2]}/slow?0.05", timeout_s=60))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: sum(juggler.instance(f"S/{name}")["waiting"] for name in "ab") == 20, "all wait")
        finally:
            gate.open()
            for thread in threads:
                thread.join()
        assert [answer.status for answer in answers] == [200] * 20
        starts = sum(juggler.instance(f"S/{name}")["starts"] for name in "ab")
        assert len({answer.json()["pid"] for answer in answers}) == starts <= 4


def test_bug_12_polls_and_failures_stop_nobody(tmp_path: Path) -> None:
    """OPTIONS, HEAD, GET and a request for a program that is not there leave the loaded one alone."""
    config = exclusive(a=web(), b=web("--name", "b"), broken=web(binary=str(tmp_path / "none")))
    with running(tmp_path, config) as juggler:
        pid = juggler.ask("POST", "/a/x").json()["pid"]
        for method in ("OPTIONS", "HEAD", "GET"):
            juggler.ask(method, "/b/x")
        assert juggler.ask("POST", "/broken/x").status == 503
        assert juggler.ask("POST", "/a/x").json()["pid"] == pid
        assert juggler.instance("S/b")["starts"] == 0


def test_bug_12_what_runs_is_known_and_waited_for(tmp_path: Path) -> None:
    """A request for another one arrives in the middle of a generation: both are answered."""
    with running(tmp_path, exclusive(a=web(), b=web("--name", "b"))) as juggler:
        answers: list[Answer] = []
        slow = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/slow?3")))
        slow.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        slow.join()
        assert answers[0].status == 200


def test_bug_13_a_warm_up_that_fails_is_seen_and_others_stay(tmp_path: Path) -> None:
    """The failing entry is named with its reason; what fits beside each other stays loaded."""
    config = exclusive(a=web(), broken=web("--fail", "no such model"), b=web("--name", "b"))
    config["memory"] = {"pools": {"gpu0": 100}}
    for endpoint in config["servers"][0]["endpoints"]:
        endpoint["memory"] = 40
    config["warmup"] = [{"server": "S", "endpoint": name} for name in ("a", "broken", "b")]
    with running(tmp_path, config) as juggler:
        eventually(lambda: juggler.status()["warmup"][2]["state"] == "done", "the warm-up is over")
        first, second, third = juggler.status()["warmup"]
        assert (first["state"], second["state"], third["state"]) == ("done", "failed", "done")
        assert "no such model" in second["error"]
        assert [juggler.instance(f"S/{name}")["residency"] for name in "ab"] == ["ready", "ready"]

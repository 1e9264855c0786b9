"""What a swap costs beyond the backend's own stop and start. Run: ``python bench/swap.py [--rounds N]``.

Two real llama.cpp servers (random weights) on an exclusive pool. In each round, interleaved:

* bare: stop one server (SIGTERM until it is gone), start the other, poll ``/health`` every 2 ms until 200, and get
  the first byte of a small completion;
* juggled: the same completion for the endpoint that is not loaded, through the juggler.

Printed are medians of both and of the difference within each round; the target is a difference of <= 60 ms.
"""

import argparse
import contextlib
import http.client
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.support import running
from tests.ports import free_port

from juggler.demo.models import write_model
from juggler.demo.run import engine_command

TARGET_S = 0.060
BODY = json.dumps({"prompt": "Once", "n_predict": 1}).encode()


def completion(port: int, path: str) -> None:
    """Ask, and wait for the first byte of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, BODY, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    connection.close()


def healthy(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def start_bare(model: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command = [engine_command(), "-m", str(model), "-c", "2048", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not healthy(port):
        assert process.poll() is None, "the bare server ended"
        time.sleep(0.002)
    return process, port


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    bare_s: list[float] = []
    juggled_s: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        models = {}
        for letter, seed in (("a", 1), ("b", 2)):
            models[letter] = directory / f"{letter}.gguf"
            write_model(models[letter], seed=seed, size_bytes=2_000_000)
        endpoints = [
            {
                "name": letter,
                "path_prefix": f"/{letter}",
                "strip_prefix": True,
                "backend": "llamacpp",
                "parameters": ["-m", str(model), "-c", "2048"],
                "kv_cache_saving": False,
            }
            for letter, model in models.items()
        ]
        config = {
            "backends": {"llamacpp": {"binary": engine_command()}},
            "servers": [{"name": "S", "endpoints": endpoints}],
        }
        with running(directory, config) as juggler:
            completion(juggler.port, "/b/completion")
            process, _ = start_bare(models["b"])
            for number in range(rounds):
                letter = "ab"[number % 2]
                began = time.perf_counter()
                process.send_signal(signal.SIGTERM)
                process.wait()
                process, port = start_bare(models[letter])
                completion(port, "/completion")
                bare_s.append(time.perf_counter() - began)
                began = time.perf_counter()
                completion(juggler.port, f"/{letter}/completion")
                juggled_s.append(time.perf_counter() - began)
            process.kill()
            process.wait()
    over_s = statistics.median(juggled - bare for juggled, bare in zip(juggled_s, bare_s, strict=True))
    bare, juggled = statistics.median(bare_s), statistics.median(juggled_s)
    print(f"rounds {rounds}")
    print(f"bare stop + start + first answer    median {bare * 1000:7.1f} ms")
    print(f"the same swap through the juggler   median {juggled * 1000:7.1f} ms   ratio {juggled / bare:.2f}")
    print(f"overhead within a round             median {over_s * 1000:7.1f} ms   target <= {TARGET_S * 1000:.0f} ms")
    return 0 if over_s <= TARGET_S else 1


if __name__ == "__main__":
    sys.exit(main())

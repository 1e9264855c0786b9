"""Hints for known failure texts."""

import pytest

from juggler.backends.hints import GENERAL, compiled, find_hint


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "does not fit"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9 MiB on device 0: cudaMalloc failed: x", "not fit"),
        ("ModuleNotFoundError: No module named 'torch.nn'", "the module torch.nn"),
        ("OSError: [Errno 98] Address already in use", "another program has taken the port"),
        ("srv init: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1", "another program"),
        ("a.out: error while loading shared libraries: libcudart.so.12: cannot open", "LD_LIBRARY_PATH"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'main.py'", "main.py does not exist"),
        ("PermissionError: [Errno 13] Permission denied: '/models/a'", "may not open /models/a"),
    ],
)
def test_general_texts(line: str, part: str) -> None:
    """Texts of Python, CUDA and the loader each get their sentence."""
    assert part in (find_hint(["starting", line, "bye"], GENERAL) or "")


def test_nothing_known_gives_nothing() -> None:
    """No hint is better than a wrong one."""
    assert find_hint(["all is well", ""], GENERAL) is None
    assert find_hint([], GENERAL) is None


def test_earlier_tables_and_lines_win() -> None:
    """A module's own table goes before the general one, and within a table the first pattern."""
    own = compiled((r"no module named", "own hint"), (r"named", "second"))
    assert find_hint(["ModuleNotFoundError: No module named 'x'"], own, GENERAL) == "own hint"

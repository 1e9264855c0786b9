"""Known failure texts and what to do about them, for any program. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hint:
    """One line of a table: a pattern looked for in each line of output, and the sentence it stands for."""

    pattern: re.Pattern[str]
    text: str
    """May refer to the pattern's groups as ``{1}``."""


def compiled(*lines: tuple[str, str]) -> tuple[Hint, ...]:
    """A table of patterns (case does not matter) and sentences."""
    return tuple(Hint(re.compile(pattern, re.IGNORECASE), text) for pattern, text in lines)


def find_hint(output: Sequence[str], *tables: Sequence[Hint]) -> str | None:
    """The sentence of the first pattern that fits any line of output; earlier ones are the more telling ones."""
    for table in tables:
        for candidate in table:
            for line in reversed(output):
                match = candidate.pattern.search(line)
                if match:
                    return candidate.text.format(match.group(0), *match.groups())
    return None


GENERAL = compiled(
    (
        r"CUDA out of memory|OutOfMemoryError|(?:cuda|hip)Malloc failed|CUDA error: out of memory|std::bad_alloc"
        r"|Cannot allocate memory|ErrorOutOfDeviceMemory|(?:failed|unable) to allocate (?!an alternative)",
        "the model does not fit into the memory that is free: declare the endpoint's `memory` so that others are "
        "unloaded first, or load it smaller",
    ),
    (
        r"(?:ModuleNotFoundError|ImportError): No module named '?([\w.]+)",
        "the Python that runs it lacks the module {1}: set `binary` to the Python of the program's own environment",
    ),
    (
        r"address already in use|EADDRINUSE|couldn't bind|error while attempting to bind|Only one usage of each socket",
        "another program has taken the port meanwhile; another start gets another port",
    ),
    (
        r"error while loading shared libraries|Library not loaded:|cannot open shared object file",
        "a library of the program is missing: install it, or add its directory to LD_LIBRARY_PATH in `env`",
    ),
    (
        r"Torch not compiled with CUDA|no CUDA-capable device|CUDA driver version is insufficient|NVML.*mismatch",
        "the program cannot use the GPU: compare its build with the driver",
    ),
    (r"PermissionError.*: '([^']+)'", "the program may not open {1}: correct its owner or mode"),
    (r"FileNotFoundError.*: '([^']+)'", "{1} does not exist: check the paths in `parameters`, and `cwd`"),
)
"""For any program; Python's, CUDA's and the dynamic loader's own texts."""

"""Asks NVML about NVIDIA's GPUs and prints one line of JSON: ``python -m juggler.survey.nvml``.

For machines (containers, mostly) that have the driver's library and not ``nvidia-smi``. A program of its own, because
a broken driver can hang whoever calls it. Exit status 1 with one sentence where NVML fails, 3 where the driver's
library is not there.
"""

import importlib
import json
import sys
from typing import Any

NO_LIBRARY = 3
_LIBRARY_NOT_FOUND = 12
"""NVML's code for it (nvml.h: ``NVML_ERROR_LIBRARY_NOT_FOUND``)."""


def main() -> int:
    """Print the GPUs; returns the exit status."""
    nvml: Any = importlib.import_module("pynvml")  # of the package nvidia-ml-py
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        print(f"NVML does not answer: {error}")
        return NO_LIBRARY if getattr(error, "value", None) == _LIBRARY_NOT_FOUND else 1
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    rows = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            sizes: dict[str, int | None] = {"total": int(memory.total), "used": int(memory.used)}
        except nvml.NVMLError:  # unified memory, or a part of a GPU lent to a container
            sizes = {"total": None, "used": None}
        name = _text(nvml.nvmlDeviceGetName(handle))
        rows.append({"index": index, "name": name, "driver": driver, **sizes})
    print(json.dumps(rows))
    return 0


def _text(value: str | bytes) -> str:
    """Bytes in older versions of the package."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


if __name__ == "__main__":
    sys.exit(main())

"""Which ends of a start are for want of memory."""

from pathlib import Path

import pytest

from juggler.errors import BackendError, OutOfMemory, StartFailed
from juggler.lifecycle.out_of_memory import as_out_of_memory, kernel_kills, says_out_of_memory

CUDA = "ggml_backend_cuda_buffer_type_alloc_buffer: allocate 9000.00 MiB on device 0: cudaMalloc failed: out of memory"


@pytest.mark.parametrize(
    "line",
    [
        CUDA,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "hipMalloc failed",
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "vk::Queue::submit: ErrorOutOfHostMemory",
        "UR backend failed. UR backend returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "ValueError: Free memory on device (5.1/23.6 GiB) on startup is less than desired GPU memory utilization (0.9)",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
    ],
)
def test_each_allocators_words(line: str) -> None:
    assert says_out_of_memory(["starting", line, "exiting"]) == line


@pytest.mark.parametrize(
    "line", ["error: unknown model architecture: 'x'", "bind: address already in use", "memory: 24 GiB", ""]
)
def test_other_words(line: str) -> None:
    assert says_out_of_memory([line]) is None


def test_what_the_program_did_without_is_no_failure() -> None:
    """llama.cpp tries again without pipeline parallelism; only what fails after that counts."""
    again = "llama_init: retrying without pipeline parallelism"
    assert says_out_of_memory([CUDA, again]) is None
    assert says_out_of_memory([CUDA, again, "cudaMalloc failed"]) == "cudaMalloc failed"


def test_a_start_that_failed_so_keeps_all_that_is_known_of_it() -> None:
    failed = StartFailed("it ended", endpoint="a", phase="starting", exit_status=1, log_tail=("x", CUDA))
    found = as_out_of_memory(failed)
    assert isinstance(found, OutOfMemory)
    assert (found.message, found.endpoint, found.exit_status) == ("it ended", "a", 1)
    assert list(found.log_tail) == ["x", CUDA]
    assert "memory" in (found.hint or "")
    assert as_out_of_memory(found) is found


def test_other_failures_stay_what_they_are() -> None:
    """They evict nobody."""
    for error in (StartFailed("no such file"), BackendError("out of memory")):
        assert as_out_of_memory(error, killed_by_kernel=True) is error


def test_the_kernels_killer_needs_both_signs() -> None:
    """A kill by somebody else while the kernel killed elsewhere is possible, and rare; without either it is none."""
    killed = StartFailed("it was killed", exit_status=-9)
    assert as_out_of_memory(killed) is killed
    found = as_out_of_memory(killed, killed_by_kernel=True)
    assert isinstance(found, OutOfMemory)
    assert "main memory" in found.message
    ended = StartFailed("it ended", exit_status=1)
    assert as_out_of_memory(ended, killed_by_kernel=True) is ended


def test_the_kernels_count(tmp_path: Path) -> None:
    events, vmstat = tmp_path / "events", tmp_path / "vmstat"
    assert kernel_kills(events, vmstat) == 0
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 9\n")
    vmstat.write_text("nr_free_pages 7\noom_kill 5\n")
    assert kernel_kills(events, vmstat) == 7
    for junk in ("oom_kill \n", "oom_kill x\n", "oom_kill " + "9" * 5000):
        vmstat.write_text(junk)
        assert kernel_kills(events, vmstat) == 2

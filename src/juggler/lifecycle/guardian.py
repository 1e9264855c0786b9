"""Keeps one backend, and ends everything of it when the juggler is gone, however the juggler died.

A stand-alone script (standard library only), started as ``python -I -S guardian.py CONTROL OUT ERR`` with three
inherited descriptors: a stream socket to the juggler, and the write ends of the backend's output pipes. It forks
itself away from the juggler, becomes the reaper of every orphan below it (Linux ``PR_SET_CHILD_SUBREAPER``), and
waits for one plan. From then on every process that has the guardian as an ancestor belongs to the backend, also
one that made its own session; "nothing is left" is exactly "the guardian has no child" (``ECHILD``).

Theory of operation. One thread, one ``poll`` loop, five phases:

- ``waiting``: no plan yet. End of file ends the guardian.
- ``running``: the main process lives. Orders: ``signal`` (to the main process group), ``hold``, ``kill``.
- ``clearing``: the main process has ended by itself, others are left: SIGTERM to all, grace, then ``killing``.
  After ``hold`` the juggler walks a stop ladder of its own: members of the main group keep the time it gives
  them, and only those outside the group, which its signals never reach, are cleared here.
- ``killing``: SIGKILL to whatever is left, again and again, until nothing is.
- ``done``: temporary files removed, ``gone`` reported; the guardian ends.

End of file on the control socket at any time means: SIGTERM to all, a short grace, ``killing``, ``done``.

No signal can hit a stranger that got a recycled pid: a number is used only while it is pinned by a child of ours
that is not reaped yet, or through a pidfd that was compared with the start time seen before.

Messages are JSON lines. To the juggler: ``started`` (pid, guardian), ``failed`` (stage, errno, text), ``exited``
(status, runtime_s), ``stuck`` (pids that survive SIGKILL), ``gone``.

Where there is no subreaper and no ``/proc`` (macOS), the main process group is all that can be seen and ended.
"""

import errno
import json
import os
import select
import signal
import sys
import time

# Imports are kept this few because they are the cost of a start: dataclasses, typing and contextlib would add
# more than all the rest together (measured: 11 ms on CPython 3.11).

CLEAR_GRACE_S = 2.0
"""What is left after the main process ended by itself gets this long between SIGTERM and SIGKILL."""
ORPHAN_GRACE_S = 1.0
"""The same when the juggler has gone: nobody uses the backend any more."""
KILL_TICK_S = 0.02
"""Between two rounds of SIGKILL: a process may fork between our look at ``/proc`` and the signal."""
STUCK_AFTER_S = 4.0
"""SIGKILL usually takes milliseconds, seconds while a driver frees a large memory. Then we say so."""
GIVE_UP_AFTER_S = 30.0
"""With nobody left to report to, a process that SIGKILL does not end is left to the system."""
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""A plan holds one command line and one environment; Linux limits both together to 6 MiB (``execve(2)``)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Process:
    """One line of ``/proc/<pid>/stat`` (``proc(5)``)."""

    __slots__ = ("group", "parent", "pid", "rss_pages", "session", "start", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        # The name before the last parenthesis may hold anything, spaces and parentheses included.
        fields = stat[stat.rindex(b")") + 2 :].split()
        self.pid = pid
        self.state = fields[0]
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.start = int(fields[19])
        """Clock ticks since boot: with the pid, the identity of a process."""
        self.rss_pages = int(fields[21])

    @property
    def ended(self) -> bool:
        """A zombie keeps its entry, but holds nothing."""
        return self.state in (b"Z", b"X")


def read_process(pid: int) -> Process | None:
    """The process as it is now, or None if there is none or no ``/proc``."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return Process(pid, file.read(4096))
    except (OSError, ValueError, IndexError):
        return None


def read_processes() -> dict[int, Process]:
    """All processes by pid; empty where there is no ``/proc``."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return {}
    return {process.pid: process for process in map(read_process, pids) if process is not None}


def descendants_of(root: int) -> list[Process]:
    """Every living process below ``root``, parents before their children; ``root`` itself is left out."""
    children: dict[int, list[Process]] = {}
    for process in read_processes().values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [root]
    while parents:
        level = [process for parent in parents for process in children.pop(parent, [])]
        found += [process for process in level if not process.ended]
        parents = [process.pid for process in level]
    return found


def signal_verified(process: Process, number: int) -> None:
    """Signal a process that somebody else may reap meanwhile, unless its pid has a new owner."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux 5.3, or forbidden (seccomp), or gone
        pidfd = -1
    try:
        now = read_process(process.pid)
        if now is None or now.start != process.start:
            return
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(process.pid, number)
    except OSError:  # gone, or of another user; the caller looks again
        pass
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def remove_paths(paths: list[str]) -> None:
    """Remove files and whole directories, never following a link; what cannot be removed stays."""
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            if os.path.dirname(path) == path:
                continue  # never the root
            for folder, folders, files in os.walk(path, topdown=False):
                for name in files + folders:
                    _remove(os.path.join(folder, name))
        _remove(path)


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        pass


def _prctl(option: int, value: int) -> bool:
    """One ``prctl(2)``; False where it does not exist or refuses."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


class Guardian:
    """The loop of the module's theory of operation; lives as long as its backend."""

    def __init__(self, control: int, out: int, err: int, wake: int, *, reaper: bool) -> None:
        self.control = control
        self.out, self.err = out, err
        self.wake = wake
        self.reaper = reaper
        self.phase = "waiting"
        self.connected = True
        self.held = False
        self.main = 0
        """Pid, process group and session of the main process; 0 before there is one."""
        self.main_ended = False
        self.started_at = 0.0
        self.exec_report = -1
        """Read end of the pipe on which a failed exec says why; end of file means that exec worked."""
        self.temp_files: list[str] = []
        self.deadline: float | None = None
        """When to act next without being asked, in ``time.monotonic`` seconds."""
        self.clear_end = 0.0
        """When the grace of ``clearing`` is over; ``deadline`` may come earlier, to look."""
        self.killing_since: float | None = None
        self.stuck_reported = False
        self.received = b""

    def run(self) -> None:
        """Until everything is over."""
        try:
            while self.phase != "done":
                self._turn()
        except BaseException:
            # A bug here must not leave a backend behind.
            if self.main:
                self._signal_all(signal.SIGKILL)
            remove_paths(self.temp_files)
            raise

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        if self.connected:
            poll.register(self.control, select.POLLIN)
        if self.exec_report >= 0:
            poll.register(self.exec_report, select.POLLIN)
        timeout_s = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        ready = [fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000 + 1)]
        if self.wake in ready:
            os.read(self.wake, 4096)
        if self.exec_report in ready:
            self._on_exec_report()
        self._reap()
        if self.control in ready and self.phase != "done":
            self._read_orders()
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self._on_deadline()
            self._reap()

    # --- the juggler's side ---------------------------------------------------------------------------------

    def _send(self, event: str, **fields: object) -> None:
        try:
            os.write(self.control, json.dumps({"event": event, **fields}).encode() + b"\n")
        except OSError:  # the juggler has gone: end of file says so in the next turn
            pass

    def _read_orders(self) -> None:
        try:
            data = os.read(self.control, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.received += data
        if not data or len(self.received) > MESSAGE_BYTES_MAX:
            self._on_juggler_gone()
            return
        *lines, self.received = self.received.split(b"\n")
        for line in lines:
            self._on_order(json.loads(line))

    def _on_order(self, order: dict[str, object]) -> None:
        op = order["op"]
        if op == "start" and self.phase == "waiting":
            self._start(order)
        elif op == "signal" and self.main:
            self._signal_group(int(signal.Signals[str(order["name"])]))
        elif op == "hold":
            self.held = True
        elif op == "kill" and self.main:
            self._start_killing()

    def _on_juggler_gone(self) -> None:
        self.connected = False
        self.held = False
        if self.phase == "waiting":
            self.phase = "done"
        elif self.phase in ("running", "clearing"):
            self.phase = "clearing"
            self._signal_all(signal.SIGTERM)
            self.deadline = time.monotonic() + ORPHAN_GRACE_S

    # --- the main process -----------------------------------------------------------------------------------

    def _start(self, plan: dict[str, object]) -> None:
        temp_files = plan["temp_files"]
        assert isinstance(temp_files, list)
        self.temp_files = temp_files
        self.exec_report, report = os.pipe()
        guardian = os.getpid()
        self.started_at = time.monotonic()
        try:
            self.main = os.fork()
        except OSError as error:
            os.close(report)
            self._on_start_failed({"stage": "fork", "errno": error.errno, "text": str(error)})
            return
        if self.main == 0:
            _become_backend(plan, guardian, self.out, self.err, report)
        self.phase = "running"
        # Only the backend may hold the pipes: their end of file tells the juggler that the output is complete.
        for fd in (report, self.out, self.err):
            os.close(fd)

    def _on_exec_report(self) -> None:
        report = b""
        while chunk := os.read(self.exec_report, 4096):  # small, written at once, followed by end of file
            report += chunk
        os.close(self.exec_report)
        self.exec_report = -1
        if report:
            if not self.main_ended:
                os.waitpid(self.main, 0)
            self._on_start_failed(json.loads(report))
        else:
            self._send("started", pid=self.main, guardian=os.getpid())

    def _on_start_failed(self, why: dict[str, object]) -> None:
        remove_paths(self.temp_files)
        self._send("failed", **why)
        self.phase = "done"

    def _reap(self) -> None:
        """Collect every ended child; see whether any is left."""
        while self.main and self.phase != "done":
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self.reaper or not self._group_lives():
                    self._on_nothing_left()
                return
            if pid == 0:
                return
            if pid == self.main:
                self._on_main_ended(os.waitstatus_to_exitcode(status))

    def _group_lives(self) -> bool:
        """Whether the main group has members; only asked where orphans are not handed to us."""
        if sys.platform.startswith("linux"):
            return any(p.group == self.main and not p.ended for p in read_processes().values())
        try:
            os.killpg(self.main, 0)
        except OSError as error:
            # macOS answers EPERM for a group that consists of zombies only.
            return error.errno not in (errno.ESRCH, errno.EPERM)
        return True

    def _on_main_ended(self, status: int) -> None:
        self.main_ended = True
        if self.exec_report >= 0:
            self._on_exec_report()
            if self.phase == "done":
                return
        self._send("exited", status=status, runtime_s=time.monotonic() - self.started_at)
        if self.phase == "running":
            self.phase = "clearing"
            if self.held:
                for process in self._others():
                    self._signal_one(process, signal.SIGTERM)
            else:
                self._signal_all(signal.SIGTERM)
            self._clear_until(time.monotonic() + CLEAR_GRACE_S)

    def _on_nothing_left(self) -> None:
        remove_paths(self.temp_files)
        self._send("gone")
        self.phase = "done"

    # --- time -----------------------------------------------------------------------------------------------

    def _clear_until(self, end: float) -> None:
        # Without orphans handed to us nothing wakes us when the last member ends, so look now and then.
        self.clear_end = end
        self.deadline = end if self.reaper else min(end, time.monotonic() + 0.05)

    def _on_deadline(self) -> None:
        now = time.monotonic()
        if self.phase == "killing":
            self._kill_round()
        elif not self.reaper and self.connected and now < self.clear_end:
            self._clear_until(self.clear_end)
        elif self.held and self._group_members():
            for process in self._others():
                self._signal_one(process, signal.SIGKILL)
            self._clear_until(now + 0.25)
        else:
            self._start_killing()

    def _start_killing(self) -> None:
        if self.phase != "killing":
            self.phase = "killing"
            self.killing_since = time.monotonic()
        self._kill_round()

    def _kill_round(self) -> None:
        assert self.killing_since is not None
        self._signal_all(signal.SIGKILL)
        now = time.monotonic()
        since_s = now - self.killing_since
        if since_s > STUCK_AFTER_S and not self.stuck_reported:
            self.stuck_reported = True
            self._send("stuck", pids=[process.pid for process in descendants_of(os.getpid())])
        if since_s > GIVE_UP_AFTER_S and not self.connected:
            remove_paths(self.temp_files)
            self.phase = "done"
        self.deadline = now + (KILL_TICK_S if since_s < 1.0 else 0.25)

    # --- signals --------------------------------------------------------------------------------------------

    def _others(self) -> list[Process]:
        """Descendants that left the main group."""
        return [process for process in descendants_of(os.getpid()) if process.group != self.main]

    def _group_members(self) -> list[Process]:
        if self.reaper:
            return [process for process in descendants_of(os.getpid()) if process.group == self.main]
        return [process for process in read_processes().values() if process.group == self.main and not process.ended]

    def _signal_group(self, number: int) -> None:
        if not self.main_ended:
            try:
                os.killpg(self.main, number)
            except ProcessLookupError:
                os.kill(self.main, number)  # forked, but not yet in its own group; not reaped, so still ours
            except PermissionError:
                pass
        elif self.reaper:
            for process in self._group_members():
                if process.parent == os.getpid():
                    self._signal_group_of(process, number)
                    return
            for process in self._group_members():
                signal_verified(process, number)
        elif self._group_lives():
            try:
                os.killpg(self.main, number)  # members pin the number; without them we would not be here
            except OSError:
                pass

    def _signal_one(self, process: Process, number: int) -> None:
        if process.parent != os.getpid():
            signal_verified(process, number)
            return
        try:
            os.kill(process.pid, number)  # a child not reaped yet: the number is its own
        except OSError:
            pass

    def _signal_group_of(self, child: Process, number: int) -> None:
        """One signal to the whole group of a child of ours: no member can fork its way out of it."""
        try:
            group = os.getpgid(child.pid)
            if group != os.getpgrp():
                os.killpg(group, number)
        except OSError:
            pass

    def _signal_all(self, number: int) -> None:
        self._signal_group(number)
        for process in descendants_of(os.getpid()):
            if number == signal.SIGKILL and process.parent == os.getpid():
                self._signal_group_of(process, number)
            if process.group != self.main or number == signal.SIGKILL:
                self._signal_one(process, number)


def _become_backend(plan: dict[str, object], guardian: int, out: int, err: int, report: int) -> None:
    """In the forked child: take on the backend's surroundings and execute it. Never returns."""
    stage = "setup"
    try:
        os.setsid()
        # If the guardian itself is killed (memory shortage), at least the main process goes with it.
        if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != guardian:
            os._exit(127)
        descriptors = plan.get("descriptors")
        if isinstance(descriptors, int):
            import resource  # needed where the juggler has raised its own limit

            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):  # SIGKILL, SIGSTOP and the C library's own
                pass
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        stage = "chdir"
        os.chdir(str(plan["cwd"]))
        stage = "exec"
        argv, env = plan["argv"], plan["env"]
        assert isinstance(argv, list)
        assert isinstance(env, dict)
        os.execvpe(argv[0], argv, env)
    except BaseException as error:
        code = getattr(error, "errno", None) or errno.EINVAL
        os.write(report, json.dumps({"stage": stage, "errno": code, "text": str(error)}).encode())
    finally:
        os._exit(127)


def main(control: int, out: int, err: int) -> None:
    """Leave the juggler's family, then keep one backend."""
    if os.fork():
        os._exit(0)  # the juggler reaps this one at once and learns that the guardian is up
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    for fd in (control, out, err):
        os.set_inheritable(fd, False)
    os.set_blocking(control, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # The juggler decides when a backend ends; a signal meant for the terminal or the unit must not end its keeper.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGALRM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    wake, wake_write = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    Guardian(control, out, err, wake, reaper=_prctl(_PR_SET_CHILD_SUBREAPER, 1)).run()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))

"""A line from every process to process 0: who has not come, and who has died, is said by name.

JAX's own service names nobody who never came, notices a dead process after minutes of silence, and
then aborts the others with a page of C++. These lines are there before JAX connects the processes
and until they end: a TCP connection to the coordinator's port, which JAX's service takes over once
all have come. A process that dies closes its line; process 0 tells the others, and all end with
`PEER_DIED`, for a launcher to start them again. One that freezes keeps its line, and JAX's service
is the first to notice: before it aborts a process, that one asks the others for a sign of life. One
that fails tells its exit code, and the others end with the same: what one of them finds wrong with
the input, a person has to mend.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time

from aigc_jax.errors import UserError, escaped

PEER_DIED = 75  # exit code, EX_TEMPFAIL of sysexits.h: the same command, again
SILENT = -1  # in place of an exit code: alive as far as its line tells, and does not answer
GRACE = 5.0  # seconds in which this process may end by itself, of the same cause as the other


class Peers:
    """The lines of this process: to all others on process 0, to process 0 on the others."""

    def __init__(self, coordinator: str, num_processes: int, process_id: int, timeout: float):
        """Waits until all processes have come.

        Args:
            coordinator: `HOST:PORT` of process 0.
            num_processes: of the run.
            process_id: of this one.
            timeout: seconds to wait; then all that came end with `PEER_DIED`.

        Raises:
            UserError: the address is none, the port is taken, or two processes have one number.
        """
        self.num_processes, self.process_id = num_processes, process_id
        host, _, port = coordinator.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise UserError(
                f'--coordinator="{coordinator}" is not HOST:PORT, with a port from 1 to 65535'
            )
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id={process_id} is not one of 0 to {num_processes - 1}")
        self._lines: dict[int, socket.socket] = {}  # by process
        self._lost: tuple[int, int] | None = None  # who died first, and the exit code it told
        self._heard: set[int] = set()  # who has answered
        self._leaving = False
        deadline = time.monotonic() + timeout
        if process_id:
            self._lines[0] = self._call(host.strip("[]"), int(port), deadline, timeout)
        else:
            self._gather(int(port), deadline, timeout)
        for line in self._lines.values():
            line.settimeout(None)
            _notice_silence(line)

    def watch(self) -> None:
        """From now on, ends this process when another one dies."""
        self._abort = _notice_abort()
        threading.Thread(target=self._watch, name="peers", daemon=True).start()
        threading.Thread(target=self._await_abort, name="abort", daemon=True).start()

    def leave(self, code: int) -> None:
        """Tells the others that this process ends: with 0, that all is well.

        Otherwise it does not return. A process that failed does not wait, as JAX's shutdown would,
        for those whom it left in the middle of a step. Process 0, with whom JAX's service ends,
        gives them `GRACE` to say that they failed too.
        """
        if code == 1:  # an exception: of this process, or the echo of another's death?
            time.sleep(GRACE / 5)
            if self._lost is not None:
                self._exit_for_peer()
        self._leaving = True
        self._broadcast(f"lost {self.process_id} {code}\n" if code else "done\n")
        if code == 0:
            return
        deadline = time.monotonic() + GRACE
        while self.process_id == 0 and self._lines and time.monotonic() < deadline:
            time.sleep(0.01)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def tell(self, code: int) -> None:
        """Tells the others that this process ends now, with this exit code."""
        self._leaving = True
        self._broadcast(f"lost {self.process_id} {code}\n")

    # --- coming ---

    def _call(self, host: str, port: int, deadline: float, timeout: float) -> socket.socket:
        problem: Exception | str = "no answer"
        while time.monotonic() < deadline:
            line = None
            try:
                line = socket.create_connection((host, port), timeout=5)
                line.sendall(b"aigc %d %d\n" % (self.process_id, self.num_processes))
                line.settimeout(max(1.0, deadline + GRACE - time.monotonic()))
                answer = _read(line)
                if answer.startswith("go"):
                    return line
                line.close()
                if answer.startswith("missing "):
                    self._end(_missing(answer.split()[1:], self.num_processes, timeout))
                if answer.startswith("error "):
                    raise UserError(answer.removeprefix("error ").strip())
            except OSError as error:
                problem = error.strerror or error
                if line is not None:
                    line.close()
            time.sleep(0.1)
        self._end(
            f"process 0 did not answer at {host}:{port} within {timeout:.0f} s ({problem}); is it "
            "running, is this its address, and does a firewall let the port through?"
        )
        raise AssertionError

    def _gather(self, port: int, deadline: float, timeout: float) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port}: {error.strerror}; is another run going "
                "on here? Give --coordinator another port, on all processes"
            ) from error
        with server:
            while len(self._lines) < self.num_processes - 1:
                server.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    line, _ = server.accept()
                except TimeoutError:
                    there = {0, *self._lines}
                    absent = [str(i) for i in range(self.num_processes) if i not in there]
                    self._broadcast(f"missing {' '.join(absent)}\n")
                    self._end(_missing(absent, self.num_processes, timeout))
                problem = self._greet(line)
                if problem:
                    for other in (line, *self._lines.values()):
                        other.sendall(f"error {problem}\n".encode())
                    raise UserError(problem)
        self._broadcast("go\n")

    def _greet(self, line: socket.socket) -> str:
        """Takes a line in; what is wrong with it, if anything. Strangers are hung up on."""
        line.settimeout(5)
        hello = re.fullmatch(r"aigc ([0-9]{1,9}) ([0-9]{1,9})\n", _read(line))
        if not hello:
            line.close()
            return ""
        i, num = int(hello[1]), int(hello[2])
        if not 0 < i < max(num, self.num_processes):  # our own do not call so
            line.close()
            return ""
        if num != self.num_processes:
            return (
                f"process {i} was told of {num} processes, process 0 of {self.num_processes}; "
                "give all the same --num_processes"
            )
        if i in self._lines:
            return f"two processes were given --process_id={i}; number them from 0, each once"
        self._lines[i] = line
        return ""

    # --- staying ---

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for i, line in self._lines.items():
                selector.register(line, selectors.EVENT_READ, i)
            while self._lines:
                for key, _ in selector.select():
                    said = _read(self._lines[key.data])
                    if said.startswith("alive"):
                        self._heard.add(key.data)
                        continue
                    if said.startswith("answer"):
                        self._broadcast("alive\n")
                        continue
                    if self.process_id == 0 or not said.startswith("lost"):
                        selector.unregister(key.fileobj)
                        del self._lines[key.data]
                    if not said.startswith("done"):
                        self._peer_lost(*_describe(key.data, said))

    def _peer_lost(self, lost: int, code: int) -> None:
        if self._lost is None:
            self._lost = lost, code
            self._broadcast(f"lost {lost} {code}\n")
            timer = threading.Timer(GRACE, self._give_up)
            timer.daemon = True
            timer.start()

    def _give_up(self) -> None:
        if not self._leaving:
            self._exit_for_peer()

    def _await_abort(self) -> None:
        """JAX aborts this process: says why, if it is that another one has died or is frozen.

        There is little time, see `_notice_abort`.
        """
        if not os.read(self._abort, 1):
            return
        self._broadcast("answer\n")
        # Process 0 decides who is silent; the others, but for its own silence, wait to hear of it.
        deadline = time.monotonic() + GRACE * (0.8 if self.process_id else 0.4)
        while self._lost is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if silent := sorted(set(self._lines) - self._heard):
            self._peer_lost(silent[0], SILENT)
        if self._lost is not None:
            self._exit_for_peer()
        libc = ctypes.CDLL(None)  # of another cause, then: as if we had not been here
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGABRT, None)
        os.kill(os.getpid(), signal.SIGABRT)

    def _exit_for_peer(self) -> None:
        """Ends this process for another's sake: with its exit code, if it told one."""
        assert self._lost is not None
        lost, code = self._lost
        if code > 0:
            self._end(f"process {lost} of {self.num_processes} failed; see what it says", code)
        what = "does not answer any more" if code == SILENT else "died without a word"
        self._end(
            f"process {lost} of {self.num_processes} {what}, so this one ends too; the same "
            "command, on all, goes on from the newest checkpoint"
        )

    def _broadcast(self, words: str) -> None:
        for line in list(self._lines.values()):
            with contextlib.suppress(OSError):
                line.sendall(words.encode())

    def _end(self, message: str, code: int = PEER_DIED) -> None:
        # One write, and no lock or buffer of Python's: the main thread may hold them for good.
        with contextlib.suppress(OSError):
            os.write(2, f"\nerror: {escaped(message)} (exit code {code})\n".encode())
        os._exit(code)


def _read(line: socket.socket) -> str:
    """The next word that comes over a line, up to its newline and no further; "" at the end."""
    try:
        there = line.recv(256, socket.MSG_PEEK)
        return line.recv(there.find(b"\n") + 1).decode("ascii", "replace") if there else ""
    except OSError:
        return ""


def _describe(i: int, said: str) -> tuple[int, int]:
    """Whom a word that came from process `i` is about, and the exit code it told, if any."""
    words = said.split()
    return (int(words[1]), int(words[2])) if said.startswith("lost") else (i, 0)


def _missing(absent: list[str], num_processes: int, timeout: float) -> str:
    few = ", ".join(absent[:20]) + (", ..." if len(absent) > 20 else "")
    return (
        f"{len(absent)} of {num_processes} processes did not come within {timeout:.0f} s: {few}; "
        "look at their logs, or wait longer with --join_timeout"
    )


def _notice_silence(line: socket.socket) -> None:
    """Lets the kernel ask after a machine that vanished: its line ends within 30 s."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _notice_abort() -> int:
    """A file descriptor from which something can be read once C++ code aborts this process.

    When process 0 dies, JAX's client aborts the others at once. What happens then must not need
    Python, whose global lock another thread may hold for good: faulthandler's handler, in C, writes
    the stack into a pipe; and the handler that it then calls is the C library's `sleep`, which the
    signal's number tells to wait for six seconds. As long is the time to say why; then the process
    aborts, whoever holds what.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    assert signal.SIGABRT == 6
    heard, told = os.pipe()
    os.set_blocking(told, False)  # a stack that is longer than a pipe holds stops nobody
    faulthandler.enable(told, all_threads=False)
    return heard

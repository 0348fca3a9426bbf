"""Who has not come and who has died is said by name, and all end with a code that tells which."""

import socket
import subprocess
import sys

import pytest
from runs import free_port

from aigc_jax.errors import UserError
from aigc_jax.parallel.peers import Peers

BODY = """
import ctypes, os, signal, sys, threading, time
from aigc_jax.errors import UserError
from aigc_jax.parallel import peers
peers.GRACE = 0.8
abort = ctypes.CDLL(None).abort  # as C++ calls it: not holding Python's global lock
me, num, port, timeout = *map(int, sys.argv[1:4]), float(sys.argv[4])
try:
    peers = peers.Peers(f"127.0.0.1:{port}", num, me, timeout)
except UserError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
peers.watch()
"""


def run(what: str, ids, num: int, timeout: float = 30.0) -> list[tuple[int, str]]:
    """Runs `what` in processes of these numbers: exit code and last line of each."""
    port = free_port()
    argv = [sys.executable, "-c", BODY + what]
    processes = [
        subprocess.Popen(
            [*argv, str(i), str(n), str(port), str(timeout)], stderr=subprocess.PIPE, text=True
        )
        for i, n in (i if isinstance(i, tuple) else (i, num) for i in ids)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    return [
        (process.returncode, error.strip().rpartition("\n")[2])
        for process, error in zip(processes, errors)
    ]


def test_all_come_and_all_leave():
    for code, line in run("time.sleep(0.3 * me); peers.leave(0)", range(3), 3):
        assert (code, line) == (0, "")


def test_those_who_do_not_come_are_named():
    for code, line in run("", (0, 2), 4, timeout=2.0):
        assert code == 75
        assert "2 of 4 processes did not come within 2 s: 1, 3;" in line


def test_process_0_does_not_come():
    ((code, line),) = run("", (1,), 2, timeout=1.0)
    assert code == 75
    assert "process 0 did not answer at 127.0.0.1" in line


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (((0, 3), (1, 3), (1, 3)), "two processes were given --process_id=1"),
        (((0, 2), (1, 3)), "process 1 was told of 3 processes, process 0 of 2"),
    ],
)
def test_numbers_that_make_no_run_are_bad_input_on_every_process(ids, problem):
    for code, line in run("", ids, 0):
        assert code == 2
        assert problem in line


@pytest.mark.parametrize("dead", [0, 2])
def test_when_one_is_killed_the_others_name_it(dead):
    what = f"os.kill(os.getpid(), 9) if me == {dead} else time.sleep(50)"
    for i, (code, line) in enumerate(run(what, range(3), 3)):
        if i == dead:
            assert code == -9
        else:
            assert code == 75
            assert f"process {dead} of 3 died without a word" in line


@pytest.mark.parametrize("code", [1, 2])
def test_when_one_fails_the_others_end_with_its_code(code):
    what = f"peers.leave({code}) if me == 1 else time.sleep(50)"
    ends = run(what, range(3), 3)
    assert [end for end, _ in ends] == [code] * 3
    assert all("process 1 of 3 failed" in ends[i][1] for i in (0, 2))


@pytest.mark.parametrize("words", ["aigc 7 2", "aigc 0 2", "aigc 1", "GET / HTTP/1.1", ""])
def test_a_stranger_is_none_of_the_processes(words):
    what = "time.sleep(0.3 * me); peers.leave(0)"
    port = free_port()
    argv = [sys.executable, "-c", BODY + what]
    lead, *_ = start = [subprocess.Popen([*argv, "0", "2", str(port), "30"])]
    with socket.socket() as stranger:
        while stranger.connect_ex(("127.0.0.1", port)):
            assert lead.poll() is None
        stranger.sendall(f"{words}\n".encode())
        assert stranger.recv(1) == b""  # hung up on
    start.append(subprocess.Popen([*argv, "1", "2", str(port), "30"]))
    assert [process.wait(timeout=60) for process in start] == [0, 0]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", "127.0.0.1:0", "h:²", ":80"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match=r"is not HOST:PORT"):
        Peers(address, 2, 0, 1.0)


def test_when_all_fail_alike_each_keeps_its_code():
    assert [code for code, _ in run("time.sleep(me / 5); peers.leave(2)", range(3), 3)] == [2] * 3


def test_an_exception_after_a_death_is_its_echo():
    what = "os._exit(9) if me == 1 else (time.sleep(0.5), peers.leave(1))"
    assert [code for code, _ in run(what, range(2), 2)] == [75, 9]


def test_jax_aborts_when_process_0_has_died():
    what = "os._exit(9) if me == 0 else (time.sleep(0.5), abort())"
    (_, (code, line)) = run(what, range(2), 2)
    assert (code, "process 0 of 2 died" in line) == (75, True)


def test_an_abort_of_another_cause_stays_one():
    what = "time.sleep(50) if me == 0 else abort()"
    assert run(what, range(2), 2)[1][0] == -6


def test_an_abort_ends_the_process_whoever_holds_pythons_lock():
    """A thread aborts, as JAX's does, while the main one is in C code that keeps the lock."""
    what = """
if me == 1:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGALRM, ctypes.cast(libc.abort, ctypes.c_void_p))

    def other():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        libc.sleep(50)

    threading.Thread(target=other, daemon=True).start()
    time.sleep(0.2)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    ctypes.PyDLL(None).sleep(50)
"""
    assert run(what, range(2), 2)[1][0] == -6


@pytest.mark.parametrize("frozen", [0, 2])
def test_one_that_is_frozen_when_jax_aborts_the_others_is_named(frozen):
    what = f"""
if me == {frozen}:
    child = os.fork()  # to end what stands still
    if child == 0:
        time.sleep(6)
        os.kill(os.getppid(), 9)
        os._exit(0)
    os.kill(os.getpid(), 19)
time.sleep(0.5)
abort()
"""
    for i, (code, line) in enumerate(run(what, range(3), 3)):
        if i != frozen:
            assert code == 75
            assert f"process {frozen} of 3 does not answer any more" in line

"""A run on a Cloud TPU, with a stand-in for the cloud: its machines are directories of this one."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = REPOSITORY / "launch" / "tpu_worker.py"


@pytest.fixture
def metadata():
    """A metadata server; `attributes` is what it tells."""
    attributes = {
        "agent-worker-number": "0",
        "worker-network-endpoints": "10.0.0.1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-4'\n",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(attributes[self.path.rsplit("/", 1)[1]].encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    attributes["address"] = f"127.0.0.1:{server.server_port}"
    yield attributes
    server.shutdown()
    server.server_close()


@pytest.fixture
def worker(metadata, tmp_path):
    """Runs a verb on a worker whose home is `tmp_path`; ends its run in the end."""

    def call(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(WORKER), *argv],
            env={**os.environ, "HOME": str(tmp_path), "GCE_METADATA_IP": metadata["address"]},
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield call
    call("stop")


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-u", "-c", code]


def report(worker) -> dict:
    return json.loads(worker("status").stdout)


def ended(worker) -> dict:
    deadline = time.monotonic() + 30
    while (seen := report(worker))["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return seen


MULTISLICE = """\
ACCELERATOR_TYPE: 'v5litepod-8'
MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.7:8080'
MEGASCALE_NUM_SLICES: '3'
MEGASCALE_SLICE_ID: '2'
"""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, "one process\n"),
        (
            # the older form: name, id and address of each worker
            {"worker-network-endpoints": "u:u:10.0.0.4,u:u:10.0.0.2", "agent-worker-number": "1"},
            "JAX_COORDINATOR_ADDRESS=10.0.0.4:9000 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1\n",
        ),
        (
            {
                "worker-network-endpoints": "10.0.1.4,10.0.1.2",
                "agent-worker-number": "1",
                "tpu-env": MULTISLICE,
            },
            "JAX_COORDINATOR_ADDRESS=10.0.0.7:9000 JAX_NUM_PROCESSES=6 JAX_PROCESS_ID=5\n",
        ),
    ],
    ids=["alone", "a pod", "three slices"],
)
def test_a_worker_learns_its_place_from_the_metadata(told, expected, metadata, worker, tmp_path):
    metadata.update(told)
    names = [word.split("=")[0] for word in expected.split() if "=" in word]
    code = (
        f"import os; print(' '.join(f'{{n}}={{os.environ[n]}}' for n in {names}) or 'one process')"
    )
    done = worker("start", "--port=9000", *python(code))
    assert (done.returncode, done.stdout) == (0, expected)
    assert ended(worker)["exit_code"] == 0
    assert expected in (tmp_path / "aigc_run.log").read_text()  # what the run itself saw


def test_a_run_outlives_the_command_that_started_it_and_ends_once(worker, tmp_path):
    assert report(worker) == {"state": "nothing"}
    code = "import signal, sys, time; n = []; signal.signal(15, lambda *_: n.append(1))\n"
    code += "print('ready')\nwhile not n: time.sleep(0.05)\ntime.sleep(0.3); sys.exit(142 + len(n))"
    assert worker("start", "--port=9000", *python(code)).returncode == 0
    log = tmp_path / "aigc_run.log"
    while "\nready\n" not in log.read_text():
        time.sleep(0.05)
    assert report(worker) == {"state": "running", "command": python(code)[1:]}
    second = worker("start", "--port=9000", *python("pass"))
    assert second.returncode == 1
    assert "a run is going on" in second.stderr
    # a machine that shuts down signals the supervisor too: the run still gets one SIGTERM, here
    # from `stop`, and its own exit code is what is written down
    os.kill(json.loads((tmp_path / "aigc_run.json").read_text())["supervisor"], signal.SIGTERM)
    assert json.loads(worker("stop").stdout) == {
        "state": "ended",
        "exit_code": 143,
        "stopped": True,
        "command": python(code)[1:],
    }


def test_a_command_that_is_not_there_ends_with_2(worker, tmp_path):
    assert worker("start", "--port=9000", "--", "no-such-command").returncode == 0
    assert ended(worker)["exit_code"] == 2
    assert "no-such-command: No such file" in (tmp_path / "aigc_run.log").read_text()


def test_a_run_that_a_reboot_took_has_ended(worker, tmp_path):
    worker("start", "--port=9000", *python("import time; time.sleep(60)"))
    state = tmp_path / "aigc_run.json"
    before = state.read_text()
    worker("stop")
    state.write_text(json.dumps({**json.loads(before), "boot": "another"}))
    assert report(worker)["state"] == "ended"
    assert report(worker)["exit_code"] is None


# The cloud: the queued resource is a directory, absent until it is made. Everything is noted.
GCLOUD = """\
#!{python}
import os, shutil, signal, subprocess, sys, json
from pathlib import Path
cloud = Path({cloud!r})
machine, notes, bucket = cloud / "machine", cloud / "notes", cloud / "bucket"
verb, *words = sys.argv[4:]
with open(notes, "a") as f:
    f.write(verb + "\\n")
def end_run():
    state = machine / "aigc_run.json"
    if state.exists() and (pid := json.loads(state.read_text()).get("pid")):
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
if verb == "create":
    machine.mkdir()
    (cloud / "looks").write_text("")
elif verb == "delete":
    end_run()
    shutil.rmtree(machine)
elif verb == "describe":
    if not machine.exists():
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    looks = cloud / "looks"
    looks.write_text(looks.read_text() + ".")
    if len(looks.read_text()) == 1:
        print("WAITING_FOR_RESOURCES")
    elif (bucket / "preempt").exists():
        (bucket / "preempt").unlink()
        end_run()
        print("SUSPENDED")
    else:
        print("ACTIVE")
elif verb == "scp":
    shutil.copy(words[0], machine)
elif verb == "ssh":
    command = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
    env = {{**os.environ, "HOME": str(machine), "PATH": f"{{cloud}}/worker:" + os.environ["PATH"]}}
    sys.exit(subprocess.run(["bash", "-c", command], env=env, cwd=machine).returncode)
"""


@pytest.fixture
def cloud(metadata, tmp_path):
    """Calls launch/tpu.py of a small repository in an empty cloud: `cloud(*words)`."""
    here = tmp_path / "laptop"
    shutil.copytree(REPOSITORY / "launch", here / "launch")
    for name in ("__init__.py", "aot/__init__.py", "aot/slices.py"):
        (here / "aigc_jax" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / "aigc_jax" / name, here / "aigc_jax" / name)
    git = ["git", "-C", str(here), "-c", "user.name=T", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "The launchers"]):
        subprocess.run([*git, *words], check=True)
    for name in ("bucket", "bin", "worker"):
        (tmp_path / name).mkdir()
    programs = {
        "bin/gcloud": GCLOUD.format(python=sys.executable, cloud=str(tmp_path)),
        "worker/uv": "#!/bin/sh\necho uv 0.13.9\n",
        "worker/gcsfuse": "#!/bin/sh\nexit 1\n",
        "worker/mountpoint": "#!/bin/sh\nexit 0\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def call(*words: str) -> subprocess.CompletedProcess:
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, str(here / "launch" / "tpu.py"), *words],
            env={**os.environ, "PATH": path, "GCE_METADATA_IP": metadata["address"]},
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield call
    if (tmp_path / "machine").exists():
        call("delete", "dcgan", "--zone=us-west4-a")


def babysit(cloud, script: str, *flags: str) -> subprocess.CompletedProcess:
    kind = ["--zone=us-west4-a", "--type=v5litepod-4", "--bucket=my-bucket", "--spot", "--poll=1"]
    command = ["bash", "-c", script, "bash", "--workdir=/mnt/runs/x"]
    return cloud("train", "dcgan", *kind, *flags, "--", *command)


def test_a_run_goes_on_after_a_preemption_and_a_crash_until_it_is_done(cloud, tmp_path):
    bucket = tmp_path / "bucket"
    script = f"""
        echo run >> {bucket}/runs
        case $(wc -l < {bucket}/runs) in
            1) touch {bucket}/preempt; exec sleep 100;;
            2) exit 3;;
        esac"""
    done = babysit(cloud, script)
    assert done.returncode == 0, done.stderr
    assert (bucket / "runs").read_text() == "run\n" * 3
    notes = (tmp_path / "notes").read_text().split()
    assert [n for n in notes if n in ("create", "scp", "delete")] == [
        *("create", "scp", "delete"),  # preempted
        *("create", "scp", "scp", "delete"),  # crashed, begun again, done
    ]
    assert not (tmp_path / "machine").exists()  # nothing costs any more
    assert "dcgan is SUSPENDED: asking for another" in done.stderr
    assert "the run ended with 3: going on from its checkpoint" in done.stderr


def test_bad_input_ends_the_run_and_the_cost_and_shows_why(cloud, tmp_path):
    done = babysit(cloud, "echo 'error: unknown config key' >&2; exit 2")
    assert done.returncode == 2
    assert "error: unknown config key" in done.stdout
    assert (tmp_path / "notes").read_text().split().count("create") == 1
    assert not (tmp_path / "machine").exists()


def test_a_run_that_keeps_failing_is_given_up(cloud, tmp_path):
    done = babysit(cloud, f"echo run >> {tmp_path}/bucket/runs; exit 1", "--retries=2")
    assert done.returncode == 1
    assert (tmp_path / "bucket" / "runs").read_text() == "run\n" * 2
    assert "giving up after 2 failures in a row" in done.stderr
    assert not (tmp_path / "machine").exists()


def test_a_finished_run_is_not_begun_again_by_the_same_command(cloud, tmp_path):
    script = f"echo run >> {tmp_path}/bucket/runs"
    assert babysit(cloud, script, "--keep").returncode == 0
    assert (tmp_path / "machine").exists()
    assert babysit(cloud, script).returncode == 0
    assert (tmp_path / "bucket" / "runs").read_text() == "run\n"
    assert not (tmp_path / "machine").exists()


def test_verb_by_verb(cloud, tmp_path):
    where = "--zone=us-west4-a"
    assert cloud("create", "dcgan", where, "--type=v5litepod-4").returncode == 0
    assert cloud("wait", "dcgan", where, "--poll=1").returncode == 0
    done = cloud("setup", "dcgan", where, "--bucket=my-bucket")
    assert done.returncode == 0, done.stderr
    assert ": ready, " in done.stdout
    script = "echo $0; trap 'exit 143' TERM; while :; do sleep 0.05; done"
    assert cloud("run", "dcgan", where, "--", "bash", "-c", script, "two words").returncode == 0
    log = tmp_path / "machine" / "aigc_run.log"
    while "\ntwo words\n" not in log.read_text():
        time.sleep(0.05)
    assert '"state": "running"' in cloud("status", "dcgan", where).stdout
    assert '"exit_code": 143' in cloud("stop", "dcgan", where).stdout
    assert "\ntwo words\n" in cloud("logs", "dcgan", where).stdout
    assert cloud("delete", "dcgan", where).returncode == 0
    assert "ABSENT" in cloud("wait", "dcgan", where).stderr

"""What the launchers print is what was reviewed, and words from a person stay words.

`pytest tests/launch --renew-goldens` rewrites tests/launch/golden.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launched import GOLDEN, NASTY, REPOSITORY, launch, printed, shim

from aigc_jax.aot import slices

TPU = "--zone=us-west4-a --dry-run"
TRAIN = "-- aigc train --config=configs/gan/dcgan.py --workdir=/mnt/runs/dcgan"
WORDS = f"{TRAIN} '--config.train.duration=2 epochs'"
CASES = {
    "tpu_create.txt": [
        f"tpu.py create dcgan --type=v5litepod-256 {TPU}",
        f"tpu.py create dcgan --type=v6e-256 --slices=4 --spot --project=my-project {TPU}",
        f"tpu.py create dcgan --type=v4-32 --runtime-version=v2-alpha-tpuv4 {TPU}",
        f"tpu.py create dcgan --type=v5e:4x4 --reserved --valid-until=6h --network=net "
        f"--subnetwork=sub --internal-ips --service-account=a@b.iam.gserviceaccount.com {TPU} "
        "-- --labels=team=vision",
        "tpu.py create dcgan --type=v5p:4x4x16 --valid-until=2027-01-31T12:00:00Z "
        "--zone=us-central1-ai1a --dry-run",
    ],
    "tpu_run.txt": [
        f"tpu.py wait dcgan {TPU}",
        f"tpu.py setup dcgan --bucket=my-bucket {TPU}",
        f"tpu.py run dcgan --port=9000 {TPU} {WORDS}",
        f"tpu.py logs dcgan --slice=1 --worker=3 --follow {TPU}",
        f"tpu.py status dcgan {TPU}",
        f"tpu.py stop dcgan {TPU}",
        f"tpu.py delete dcgan {TPU}",
    ],
    "tpu_train.txt": [
        f"tpu.py train dcgan --type=v5p-128 --bucket=my-bucket --spot {TPU} {WORDS}",
        f"tpu.py train mine --type=v6e-8 --bucket=my-bucket --env=SEED=1 --gcloud=--tags=a "
        f"--tunnel-through-iap {TPU} -- python my_train.py",
    ],
    "gke.txt": [
        "gke.py create dcgan --topology=v5e:16x16 --slices=2 --spot --project=my-project "
        "--cluster=pods --location=us-west4 --zone=us-west4-a --dry-run",
        "gke.py logs dcgan --slice=1 --worker=3 --follow --dry-run",
        "gke.py status dcgan --dry-run",
        "gke.py stop dcgan --dry-run",
        "gke.py delete dcgan --slices=2 --cluster=pods --location=us-west4 --dry-run",
        "gke.py create one --topology=v5litepod-4 --cluster=pods --location=us-west4 "
        "--zone=us-south1-ai1b --internal-ips --node-account=a@b.iam.gserviceaccount.com --dry-run "
        "-- --node-labels=team=vision",
        "gke.py create seven --topology=tpu7x:4x4x4 --reservation=r --project=my-project "
        "--cluster=pods --location=us-central1 --zone=us-central1-a --dry-run",
        "gke.py delete seven --policy-region=us-central1 --project=my-project --cluster=pods "
        "--location=us-central1 --dry-run",
        "gke.py create waiting --topology=v6e-16 --flex-start --queued --cluster=pods "
        "--location=us-east5 --zone=us-east5-a --dry-run",
    ],
    "gke_jobset.yaml": [
        "gke.py run dcgan --topology=v5e:16x16 --slices=2 --image=us-docker.pkg.dev/p/r/aigc:tpu "
        f"--bucket=my-bucket --dry-run {WORDS}",
    ],
    "gke_one_machine.yaml": [
        "gke.py run mine --topology=ct6e-standard-8t --image=i --pvc=claim --queue=team "
        "--service-account=me --env=SEED=$1 --node-selector=pool=a --spot --dry-run "
        "-- python my_train.py",
    ],
    "slurm.txt": [
        "slurm.py logs dcgan --follow --dry-run",
        "slurm.py status dcgan --dry-run",
        "slurm.py stop dcgan --dry-run",
    ],
    "slurm_per_gpu.sbatch": [
        "slurm.py run dcgan --nodes=2 --gpus=8 --time=24:00:00 --sbatch=--partition=gpu "
        f"--sbatch=--cpus-per-task=12 --dry-run {WORDS}",
    ],
    "slurm_per_node.sbatch": [
        f"slurm.py run dcgan --gpus=4 --time=2-00:00:00 --per=node --dry-run {WORDS}",
    ],
    "local.txt": [f"local.py --processes=2 --devices=4 --dry-run {WORDS}"],
}


@pytest.mark.parametrize("golden", CASES)
def test_dry_run_prints_the_reviewed_commands(golden, renew):
    outputs = [printed(argv).replace(str(REPOSITORY), "/shared/aigc_jax") for argv in CASES[golden]]
    text = outputs[0]
    if golden.endswith(".txt"):
        text = "\n".join(f"$ launch/{argv}\n{out}" for argv, out in zip(CASES[golden], outputs))
    if renew:
        (GOLDEN / golden).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / golden).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        *(
            (["tpu.py", "status", bad, "--zone=us-west4-a"], "is not a name")
            for bad in (
                "my run",
                "a;b",
                "$(id)",
                "a'b",
                'a"b',
                "`id`",
                "Up",
                "1a",
                "a-",
                "a\nb",
                "",
            )
        ),
        (["slurm.py", "run", "a b", "--gpus=1", "--time=1:00:00"], "is not a name"),
        (["gke.py", "stop", "a" * 32], "at most 31"),
        ("tpu.py status a --zone='us-west4-a;id'", "is not a zone"),
        ("tpu.py status a --zone=us-west4-a --project='p$(id)x'", "is not a project"),
        ("tpu.py setup a --zone=us-west4-a --bucket=gs://b", "without gs://"),
        ("tpu.py create a --zone=us-west4-a --type='v4-8 --spot'", "unknown topology"),
        ("tpu.py create a --zone=us-west4-a --type=v9-8", "--runtime-version"),
        ("tpu.py create a --zone=us-west4-a --type=tpu7x-8", "launch/gke.py"),
        ("tpu.py create a --zone=us-west4-a --type=v5e-16", 'did you mean "v5litepod-16"?'),
        ("tpu.py create a --zone=us-west4-a --type=v5litepod-7", "v5litepod-8"),
        ("tpu.py create a --zone=us-west4-a --type=v4-12", "v4-16"),
        ("tpu.py create a --zone=us-west4-a --type=v5p:1x1x1", "smallest v5p"),
        ("tpu.py create a --zone=us-west4-a --type=v4-8 --spot --reserved", "do not go together"),
        ("tpu.py create a --zone=us-west4-a --type=v4-8 -- aigc train", "is none"),
        ("tpu.py create a --zone=us-west4-a --type=v4-8 --valid-until=soon", "like 6h"),
        ("tpu.py create a --zone=us-west4-a --type=v4-8 --slices=0", "whole number from 1"),
        ("tpu.py run a --zone=us-west4-a --port=80 -- aigc", "1024"),
        ("tpu.py run a --zone=us-west4-a", "the command is missing"),
        ("tpu.py run a --zone=us-west4-a -- aigc train --workdir=s3://b/r", "/mnt/runs/NAME"),
        ("local.py -- aigc train --workdir s3://b/r", "/mnt/runs/NAME"),
        ("tpu.py stop a --zone=us-west4-a -- aigc", "takes no command"),
        ("tpu.py stop a --zone=us-west4-a --dryrun", "unrecognized arguments: --dryrun"),
        (
            "tpu.py train a --zone=us-west4-a --type=v4-8 --bucket=bkt -- aigc --workdir=runs/a",
            "--workdir in the bucket",
        ),
        *(
            (f"gke.py create a --topology={bad} --cluster=c --location=us-west4", say)
            for bad, say in (
                ("v5e:16", "after the colon"),
                ("v5e:3x4", "nearest: v5e:2x2"),
                ("v4:4x4", "3 dimensions"),
            )
        ),
        *(
            (f"gke.py create a --topology={bad} --cluster=c --location=l-x1 --zone=l-x1-a", say)
            for bad, say in (
                ("v4:1x1x1", "no machine"),
                ("v3:2x2", "no machine"),
                ("v5e:2x2 --slices=2", "single machine"),
                ("v5e:4x4 --spot --flex-start", "write one"),
            )
        ),
        ("gke.py run a --topology=v5e:4x4 --image=i -- python t.py", "one of --bucket and --pvc"),
        ("slurm.py run a --gpus=1 --time=1h -- aigc", "24:00:00"),
        ("slurm.py run a --gpus=1 --time=1:00:00 '--sbatch=--mem=1;id' -- aigc", "--mem=64G"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_one_line(argv, part):
    done = launch(argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert part in done.stderr


@pytest.mark.parametrize("script", ["tpu.py", "gke.py", "slurm.py", "local.py"])
def test_help_teaches_with_a_whole_command(script):
    text = printed([script, "--help"])
    assert "--dry-run" in text
    assert "-- aigc train --config=" in text


def test_words_survive_both_shells_on_the_way_to_a_tpu(tmp_path):
    line = printed(["tpu.py", "run", "a", *TPU.split(), "--", "aigc", *NASTY])
    local = shell(line, tmp_path, "gcloud")
    remote = next(word for word in local if word.startswith("--command=")).removeprefix(
        "--command="
    )
    words = shell(remote, tmp_path, "python3")
    assert words[words.index("--") + 1 :] == ["aigc", *NASTY]
    assert not (tmp_path / "pwned").exists()


def test_new_zones_and_every_spelling_of_a_slice_are_taken():
    for spelling in ("v5litepod-16", "v5e:4x4", "ct5lp-hightpu-4t:4x4", "tpu-v5-lite-podslice:4x4"):
        flags = "--zone=us-south1-ai1b --dry-run"
        text = printed(f"tpu.py create a --type={spelling} {flags}")
        assert "--accelerator-type=v5litepod-16 " in text
        assert "--zone=us-south1-ai1b" in text
        text = printed(f"gke.py create a --topology={spelling} --cluster=c --location=l-x1 {flags}")
        assert "--machine-type=ct5lp-hightpu-4t " in text
        assert "--tpu-topology=4x4 " in text


def test_words_and_place_survive_the_way_into_a_pod(tmp_path):
    yaml = pytest.importorskip("yaml")
    flags = "--topology=v5e:4x4 --slices=2 --image=i --bucket=bkt --dry-run"
    command = ["recorder", "--workdir=/mnt/runs/a", *NASTY]
    text = printed(["gke.py", "run", "a", *flags.split(), "--", *command])
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    # what Kubernetes makes of $$ (https://kubernetes.io/docs/tasks/inject-data-application)
    argv = [word.replace("$$", "$") for word in container["command"]]
    words = record(argv, tmp_path, "recorder", {"SLICE": "1", "JOB_COMPLETION_INDEX": "2"})
    assert words == command[1:]
    assert (tmp_path / "process_id").read_text() == "6"  # the third host of the second slice
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["JAX_NUM_PROCESSES"] == "8"
    assert job["parallelism"] == job["completions"] == 4


def test_a_host_of_a_ray_cluster_takes_the_number_that_libtpu_knows(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "launch")
    place = importlib.import_module("ray_hosts").place
    addresses = ["10.0.0.7", "10.0.0.8"]
    assert place(1, addresses, 8482, {}) == {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.7:8482",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    gke = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}
    found = place(1, addresses, 8482, gke)
    assert (found["JAX_COORDINATOR_ADDRESS"], found["JAX_PROCESS_ID"]) == ("a:8482", "0")
    # another number of machines: that numbering is of something else
    assert place(1, addresses, 8482, {**gke, "TPU_WORKER_HOSTNAMES": "a"})["JAX_PROCESS_ID"] == "1"


def test_the_recipes_say_how_many_machines_a_slice_has():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((REPOSITORY / "launch" / "kuberay.yaml").read_text())["spec"]
    group = job["rayClusterSpec"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    labels = pod["nodeSelector"]
    found = slices.parse(
        f"{labels['cloud.google.com/gke-tpu-accelerator']}:"
        f"{labels['cloud.google.com/gke-tpu-topology']}"
    )
    limits = pod["containers"][0]["resources"]["limits"]
    assert (group["numOfHosts"], int(limits["google.com/tpu"])) == (found.hosts, found.host)
    assert f"--hosts={found.hosts} --resource=TPU={found.host} --" in job["entrypoint"]
    assert subprocess.run(["bash", "-n", REPOSITORY / "launch" / "xpk.sh"]).returncode == 0
    for name in ("skypilot", "skypilot_tpu"):
        task = yaml.safe_load((REPOSITORY / "launch" / f"{name}.yaml").read_text())
        assert subprocess.run(["bash", "-n", "-c", task["setup"] + task["run"]]).returncode == 0


def taught(program: str) -> list[str]:
    """The commands of a program in the fenced blocks of the pages, without `xargs` before them."""
    pages = sorted((REPOSITORY / "launch").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [re.sub(r"^xargs [-\w{} ]*?(?=gcloud )|[<>] machines$", "", line) for line in lines]
    return [line for line in lines if line.startswith(program)]


def test_the_readme_teaches_commands_that_are_accepted():
    commands = taught("launch/")
    assert {line.split()[0] for line in commands} == {
        f"launch/{name}.py" for name in ("local", "tpu", "gke", "slurm")
    }
    for line in commands:
        flags, hyphens, command = line.removeprefix("launch/").partition(" -- ")
        assert printed(f"{flags} --dry-run{hyphens}{command}")


def test_the_commands_for_a_group_of_machines_are_those_of_the_launcher_for_a_tpu(tmp_path):
    (tmp_path / "machines").write_text("gpt2-x1\n")
    page = (REPOSITORY / "launch" / "compute_engine.md").read_text(encoding="utf-8")
    lines = re.findall(r"^xargs .*$", page, re.MULTILINE)
    reached = [shell(line, tmp_path, "gcloud") for line in lines]
    assert all(words[2].startswith(("gpt2-x1", "aigc_jax.bundle")) for words in reached)
    train = "-- aigc train --config=configs/lm/gpt2.py --workdir=/mnt/runs/gpt2"
    theirs = [
        printed(f"tpu.py setup gpt2 --bucket=my-runs {TPU}"),
        printed(f"tpu.py run gpt2 {TPU} {train}"),
    ]
    theirs = [word for text in theirs for word in shlex.split(text) if "--command=" in word]
    ours = [word for words in reached for word in words if "--command=" in word]
    assert ours[:2] == theirs
    policy, machine, size = (
        re.findall(rf"^gcloud .*{option}=(\S+)", page, re.MULTILINE)
        for option in ("--accelerator-topology", "templates create .*--machine-type", "--size")
    )
    assert slices.parse(f"{machine[0]}:{policy[0]}").hosts == int(size[0])


def test_gcloud_knows_every_flag(tmp_path):
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    goldens = "".join((GOLDEN / name).read_text() for name in CASES if name.endswith(".txt"))
    lines = goldens.replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("gcloud ")] + taught("gcloud ")
    newer = " --target-size-policy-mode=bulk"  # than gcloud 528
    commands = [line.replace(newer, "") for line in commands]
    assert len(commands) > 30
    listing = tmp_path / "commands.json"
    listing.write_text(json.dumps([{"command_string": command} for command in commands]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={listing}"],
        env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode or not done.stdout:
        pytest.skip("this gcloud has no lint-gcloud-commands")
    results = json.loads(done.stdout)
    assert [r["error_message"] for r in results if not r["success"]] == []


def shell(line: str, directory: Path, program: str) -> list[str]:
    """The arguments that `program` gets when bash runs the line."""
    return record(["bash", "-c", line], directory, program, {})


def record(argv, directory: Path, program: str, variables: dict[str, str]) -> list[str]:
    notes = "open('argv', 'w').write(json.dumps(sys.argv[1:]))\n"
    notes += "open('process_id', 'w').write(os.environ.get('JAX_PROCESS_ID', ''))\n"
    code = f"import json, os, sys\nos.chdir({str(directory)!r})\n{notes}"
    shim(directory / program, f"#!{sys.executable}\n{code}")
    env = {**os.environ, **variables, "PATH": f"{directory}:{os.environ['PATH']}"}
    subprocess.run(argv, env=env, cwd=directory, check=True, timeout=30)
    return json.loads((directory / "argv").read_text())

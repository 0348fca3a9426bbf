"""Greedy decoding of the same GPT-2 in aigc_jax, in transformers and in plain PyTorch.

  python benchmarks/generate.py                     batch 1 and 32, 6 layers x 384
  python benchmarks/generate.py --rounds=9 --vocabulary=50257

Needs the extra `peers`. All run on a GPU where JAX and PyTorch see one, else on the CPU's cores, in
float32 with products in full precision. Every contender is a process of its own that reads the same
files; they take turns, and the ratio is taken within each round: a machine that slows down slows
all of them down. Before anything is timed all have to write the same tokens. Contenders:

  ours                  `generate.text.TextGenerator`, on a CPU the batch split over the cores
  transformers          `generate` as it stands
  transformers_static   with cache_implementation="static"; on a GPU it compiles its forward pass
  torch                 a loop in PyTorch, keys and values in tensors that are written in place

A round's time is that of one call, prompt included; `first` is that of a call for one new token.
The last line on stdout is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENDERS = ("ours", "transformers", "transformers_static", "torch")
PROMPT = 16
PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}  # PyTorch's names and JAX's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=65)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--new", type=int, default=200, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", default="", help="be this one (started by this program)")
    parser.add_argument("--model", default="")
    args = parser.parse_args()
    if args.contender:
        return contend(args)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, args)
        mine = [sys.executable, __file__, *sys.argv[1:], f"--model={folder}"]
        processes = {
            name: subprocess.Popen(
                [*mine, f"--contender={name}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
                text=True,
            )
            for name in CONTENDERS
        }
        try:
            results = {
                batch: compare(processes, int(batch), args) for batch in args.batches.split(",")
            }
        finally:
            for process in processes.values():
                process.kill()
    shape = {k: getattr(args, k) for k in ("layers", "width", "vocabulary", "context", "new")}
    about = {"prompt": PROMPT, "rounds": args.rounds}
    print(json.dumps({**shape, **about, "batches": results}))


def compare(processes, batch: int, args) -> dict:
    """Medians over rounds in turns; tokens a second, and our ratio to the best peer."""

    def ask(name: str, new: int) -> dict:
        process = processes[name]
        process.stdin.write(f"{batch} {new}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} ended; VERBOSE=1 shows why")
        return json.loads(line)

    answers = {name: ask(name, args.new) for name in CONTENDERS}
    for name in CONTENDERS:
        ask(name, 1)
        if answers[name]["tokens"] != answers["ours"]["tokens"]:
            raise SystemExit(f"{name} writes other tokens than ours")
        if answers[name]["platform"] != answers["ours"]["platform"]:
            platforms = {name: answer["platform"] for name, answer in answers.items()}
            raise SystemExit(f"not all on the same kind of device: {platforms}")
    whole = {name: [] for name in CONTENDERS}
    first = {name: [] for name in CONTENDERS}
    for turn in range(args.rounds):
        start = turn % len(CONTENDERS)
        for name in CONTENDERS[start:] + CONTENDERS[:start]:
            whole[name].append(ask(name, args.new)["seconds"])
            first[name].append(ask(name, 1)["seconds"])
    peers = [name for name in CONTENDERS if name != "ours"]
    ratios = [min(whole[p][i] for p in peers) / whole["ours"][i] for i in range(args.rounds)]
    found = {
        name: {
            "tokens_per_second": round(batch * args.new / statistics.median(whole[name]), 1),
            "first_ms": round(1e3 * statistics.median(first[name]), 2),
        }
        for name in CONTENDERS
    }
    found["platform"] = answers["ours"]["platform"]
    found["ratio_to_best_peer"] = {
        "median": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }
    print(f"batch {batch}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def contend(args) -> None:
    """Answers lines `BATCH NEW` with the time and the tokens of a call."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    build = {"ours": ours, "torch": plain_torch}.get(args.contender, transformers_generate)
    generate, platform = build(args)
    for line in sys.stdin:
        batch, new = map(int, line.split())
        prompt = [[(7 * i + 3 * j) % args.vocabulary for j in range(PROMPT)] for i in range(batch)]
        start = time.perf_counter()
        tokens = generate(prompt, new)
        seconds = time.perf_counter() - start
        tokens = [list(map(int, t)) for t in tokens]
        out.write(json.dumps({"seconds": seconds, "tokens": tokens, "platform": platform}))
        out.write("\n")
        out.flush()


def ours(args):
    import jax

    # A pool as small as the number of devices can deadlock, see `parallel.processes.cpu_devices`.
    os.environ.setdefault("NPROC", str(4 * len(os.sched_getaffinity(0))))
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    # A GPU's products would have the 10 bits of TF32, which PyTorch's have on request alone.
    jax.config.update("jax_default_matmul_precision", "highest")
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from aigc_jax.generate.options import Options
    from aigc_jax.generate.text import TextGenerator
    from aigc_jax.interop import huggingface
    from aigc_jax.models.transformer import GPT
    from aigc_jax.parallel.processes import keep_host_memory

    keep_host_memory()
    found = huggingface.read(Path(args.model))
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    mesh = jax.make_mesh((devices, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    variables = {"params": found.parameters}
    one = jax.device_put(variables, jax.devices()[0])
    all_of_them = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    alone, together = TextGenerator(GPT(**found.fields)), TextGenerator(GPT(**found.fields))
    together.split = (NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), devices)
    key = jax.random.key(0)

    def generate(prompt, new):
        prompts = [np.array(p, np.int32) for p in prompt]
        options = Options(do_sample=False, temperature=1.0, max_new_tokens=new)
        if len(prompts) < devices:
            texts = alone(one, prompts, options, key)
        else:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                texts = together(all_of_them, prompts, options, key)
        return [text.tokens for text in texts]

    return generate, jax.default_backend()


def transformers_generate(args):
    import torch
    from transformers import AutoModelForCausalLM

    device = torch_device(torch)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval().to(device)
    more = {"cache_implementation": "static"} if args.contender.endswith("static") else {}

    def generate(prompt, new):
        tokens = torch.tensor(prompt, device=device)
        with torch.inference_mode():
            return model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **more,
            ).tolist()

    return generate, PLATFORMS[device]


def plain_torch(args):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    device = torch_device(torch)
    w = {
        k.removeprefix("transformer."): x.to(device)
        for k, x in load_file(f"{args.model}/model.safetensors").items()
    }
    heads, width = args.heads, args.width

    def forward(tokens, caches, start):
        batch, length = tokens.shape
        x = w["wte.weight"][tokens] + w["wpe.weight"][start : start + length]

        def dense(x, name):
            return torch.addmm(w[f"{name}.bias"], x.view(-1, x.shape[-1]), w[f"{name}.weight"])

        def norm(x, name):
            return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"])

        for i, (keys, values) in enumerate(caches):
            qkv = dense(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
            q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            keys[:, :, start : start + length] = k
            values[:, :, start : start + length] = v
            end = start + length
            h = F.scaled_dot_product_attention(
                q, keys[:, :, :end], values[:, :, :end], is_causal=length > 1
            )
            h = h.transpose(1, 2).reshape(batch, length, width)
            x = x + dense(h, f"h.{i}.attn.c_proj").view(x.shape)
            h = F.gelu(dense(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
            x = x + dense(h, f"h.{i}.mlp.c_proj").view(x.shape)
        return norm(x[:, -1], "ln_f") @ w["wte.weight"].T

    def generate(prompt, new):
        with torch.inference_mode():
            tokens = torch.tensor(prompt, device=device)
            size = (len(prompt), heads, tokens.shape[1] + new, width // heads)
            empty = lambda: torch.empty(size, device=device)  # noqa: E731
            caches = [(empty(), empty()) for _ in range(args.layers)]
            out, last, start = [tokens], tokens, 0
            for _ in range(new):
                logits = forward(last, caches, start)
                start += last.shape[1]
                last = logits.argmax(dim=-1, keepdim=True)
                out.append(last)
            return torch.cat(out, dim=1).tolist()

    return generate, PLATFORMS[device]


def torch_device(torch) -> str:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_model(folder: str, args) -> None:
    """Random weights, of a size that makes the likeliest token clear."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=args.vocabulary,
        n_positions=args.context,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


if __name__ == "__main__":
    main()

"""The keys of a config: of each its default, what it means and what it may be. The one place.

`config.py` makes the sections of these tables and checks them, `aigc VERB --config=FILE --help`
prints them. A key of a task or of a module has its default and its meaning in that dataclass, and
its range here. Imports nothing heavy.
"""

import re
from typing import Any, NamedTuple

from aigc_jax import ranges
from aigc_jax.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    PATTERNS,
    RENAMES,
    SIZE,
    SIZE_OR_ZERO,
    SWITCH,
    TEXT,
    TUPLE,
    Allowed,
    Kind,
    Range,
    each,
    one_of,
)


class Key(NamedTuple):
    """A row of a table."""

    default: Any
    about: str
    allowed: Allowed


Table = dict[str, Key]

MAX_SIDE = 8192  # of an image; one takes 200 MB
_TRACKERS = {"", "wandb", "mlflow", "trackio"}
DURATION_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(steps?|epochs?|examples?|)\s*")


def _is_duration(x: Any) -> bool:
    if isinstance(x, int) and not isinstance(x, bool):
        return 0 <= x < ranges.LARGE
    return isinstance(x, str) and (x in ("", "never") or bool(DURATION_FORM.fullmatch(x)))


def _is_length(x: Any) -> bool:
    return _is_duration(x) and bool(re.search("[1-9]", str(x)))


def _is_window(x: Any) -> bool:
    found = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", x) if isinstance(x, str) else None
    return x == "" or bool(found and int(found[1]) < int(found[2]))


def _is_vary(x: Any) -> bool:
    pairs = isinstance(x, tuple | list) and all(isinstance(p, tuple | list) for p in x)
    if not pairs or not all(len(p) == 2 and isinstance(p[0], str) for p in x):
        return False
    if not all(isinstance(p[1], tuple | list) and len(p[1]) > 1 for p in x):
        return False
    numbers = all(value in ranges.FINITE for _, values in x for value in values)
    lengths = {len(values) for _, values in x}
    return numbers and len(lengths) <= 1 and len({key for key, _ in x}) == len(x)


DURATION = Kind(
    'a duration, e.g. "300 steps", "20 epochs", "60000 examples" or "never"', _is_duration
)
LENGTH = Kind('a duration above 0, e.g. "300 steps", "20 epochs" or "60000 examples"', _is_length)
TRACKERS = Kind(
    'some of wandb, mlflow and trackio, with commas between, or ""',
    lambda x: isinstance(x, str) and {t.strip() for t in x.split(",")} <= _TRACKERS,
)
VARY = Kind(
    "pairs of a key and as many numbers, two or more, e.g. "
    '(("optimizer.model.learning_rate", (1e-4, 1e-3)),)',
    _is_vary,
)
WINDOW = Kind('steps to record, e.g. "100:110", or ""', _is_window)
BATCH = Range(1, 2**24, "[]", whole=True)
FEW = Range(1, 2**16, "[]", whole=True)
AXIS = Kind(
    "a number of devices from 1 up, or -1 for the rest of them",
    lambda x: x in Range(-1, 2**20, whole=True) and x != 0,
)

TOP: Table = {
    "seed": Key(0, "of every random draw", ranges.SEED),
}

TRAIN: Table = {
    "duration": Key("20 epochs", "steps, epochs or examples", LENGTH),
    "seeds": Key(1, "runs in one program: seed, seed + 1, ..., each with its own data order", FEW),
    "vary": Key((), "((key, (value, value)),): runs of all seeds with each value", VARY),
    "accumulate": Key(1, "microbatches per step", FEW),
    "steps_per_call": Key(1, "steps in one lax.scan, without a word from the host", FEW),
    "ema_decay": Key(
        0.0,
        "moving average of the parameters (of a GAN the generator's); 0: none",
        ranges.DECAY_RATE,
    ),
    "freeze": Key((), "regexes of parameter paths that are not trained", PATTERNS),
    "init_from": Key(
        "", "WORKDIR[:STEP] of another run, or FILE.safetensors: start from its parameters", TEXT
    ),
    "init_rename": Key((), "((regex, replacement), ...) from its parameter paths to ours", RENAMES),
    "init_skip": Key((), "regexes of our parameter paths left as they were drawn", PATTERNS),
    "precision": Key(
        "float32",
        "or bfloat16: compute; parameters and losses stay float32",
        one_of("float32", "bfloat16"),
    ),
    "log_every": Key("50 steps", "a line of metrics", DURATION),
    "eval_every": Key("1 epoch", '"never" to switch off, as for the next two', DURATION),
    "sample_every": Key("1 epoch", "samples to look at", DURATION),
    "checkpoint_every": Key("1 epoch", "a checkpoint to go on from", DURATION),
    "checkpoint_minutes": Key(
        0.0, "also when so many minutes have passed since the last; 0: never", Range(0, 10**6)
    ),
    "local_checkpoint": Key(
        "never", "a copy on each host's own disk, which a restart reads first", DURATION
    ),
    "keep": Key(2, "latest checkpoints kept", COUNT),
    "best": Key("", '"lowest eval/loss": the checkpoint where it was so is kept too', TEXT),
    "nonfinite": Key(
        "stop", "at a NaN or infinity; or skip: leave the step's update out", one_of("stop", "skip")
    ),
    "deterministic": Key(False, "on a GPU: bit-equal runs, slower; elsewhere they are so", SWITCH),
    "trackers": Key("", "wandb, mlflow, trackio: some of these get the metrics too", TRACKERS),
    "profile": Key("", '"START:STOP" steps, for TensorBoard; SIGUSR1: the next 10', WINDOW),
    "stall_seconds": Key(
        900,
        "of silence until the stacks are shown; 0: only on SIGUSR2",
        Range(0, 10**7, "[]", whole=True),
    ),
}

LORA: Table = {
    "patterns": Key(
        (), "regexes of dense layers' paths that get adapters, the rest is frozen", PATTERNS
    ),
    "rank": Key(8, "of each adapter", FEW),
    "alpha": Key(16.0, "an adapter is scaled by alpha / rank", ranges.POSITIVE),
    "dropout": Key(0.0, "rate, on what adapters read", Range(0, 1)),
    "rslora": Key(False, "scale by alpha / sqrt(rank)", SWITCH),
    "whole": Key((), "regexes of parameter paths trained beside them, e.g. a new head", PATTERNS),
}
"""`config.train.lora`."""

PARALLEL: Table = {
    "mode": Key("jit", "or pmap (data parallel only)", one_of("jit", "pmap")),
    "data": Key(-1, "devices along each mesh axis; -1 is the rest", AXIS),
    "fsdp": Key(1, "the state is split over these, too", AXIS),
    "tensor": Key(1, "the matrices are split over these", AXIS),
    "fsdp_min_size": Key(2**18, "elements; smaller arrays are not split over fsdp", COUNT_OR_ZERO),
    "rules": Key((), "((path regex, (axis, axes or None per dimension)), ...)", TUPLE),
    "cpu_devices": Key(
        0,
        "to make of a CPU; 0: one per core, as the batch divides",
        Range(0, 4096, "[]", whole=True),
    ),
}

_DATA: Table = {
    "source": Key("", "`aigc data list` shows them; a path is a file or folder", TEXT),
    "split": Key("train", "or a slice, train[:95%], or a sum, train+test", TEXT),
    "eval_split": Key("test", 'held out; "" for none', TEXT),
    "batch_size": Key(128, "examples of a batch, on all devices together", BATCH),
    "eval_batch_size": Key(500, "the same in evaluation; no number depends on it", BATCH),
    "placement": Key(
        "memory",
        "or device: gather inside the step; or disk",
        one_of("memory", "device", "disk"),
    ),
}

IMAGES: Table = {
    **_DATA,
    "image_size": Key(
        0,
        "the side that all images get; 0 keeps theirs (files: the first's)",
        Range(0, MAX_SIDE, "[]", whole=True),
    ),
    "channels": Key(0, "1, 3 or 4; 0: grey if most files are, else colour", one_of(0, 1, 3, 4)),
    "fit": Key(
        "crop", "how another shape fits: crop, pad or stretch", one_of("crop", "pad", "stretch")
    ),
    "background": Key("white", "under transparency, and around what is padded", TEXT),
    "on_bad": Key(
        "stop", "at an unreadable file; or skip: leave it out and count it", one_of("stop", "skip")
    ),
    "stratify": Key(True, "folders without splits: hold out alike of each class", SWITCH),
    "transforms": Key(
        "range(-1, 1)", "resize(64) | random_crop(4) | random_flip | binarize | range(0, 1)", TEXT
    ),
}

TEXTS: Table = {
    **_DATA,
    "eval_split": _DATA["eval_split"]._replace(default="validation"),
    "batch_size": _DATA["batch_size"]._replace(default=12),
    "eval_batch_size": _DATA["eval_batch_size"]._replace(default=64),
    "tokenizer": Key(
        "char",
        "or byte, bpe:4096, tokenizer.json, a folder with encoder.json and vocab.bpe, a WORKDIR",
        TEXT,
    ),
    "pair": Key(
        "", '"de-en": pairs of lines of STEM.de and STEM.en, from the first to the second', TEXT
    ),
    "source_tokenizer": Key(
        "", "pairs: that of the sources, trained on them alone; empty: they share `tokenizer`", TEXT
    ),
    "pack": Key(False, "pairs: put several in a row of block_size; none sees another", SWITCH),
    "labels": Key(
        "",
        '"text,label", the columns of CSV and TSV files (or "2,1"); or "folders", one for a class',
        TEXT,
    ),
    "on_bad": Key(
        "stop",
        "labels: at a bad row; or skip: leave it out and count it",
        one_of("stop", "skip"),
    ),
    "documents": Key(
        "",
        'files, blank_lines, a separator, or messages: tokens see none of others; "": one stream',
        TEXT,
    ),
    "block_size": Key(
        64, "tokens the model sees; an example holds one more", Range(1, 2**24, "[]", whole=True)
    ),
    "stride": Key(64, "tokens between the starts of training examples", COUNT),
}

OPTIMIZER: Table = {
    "name": Key("adam", "adam, adamw, sgd, lion, muon, ...: see aigc_jax/optim.py", TEXT),
    "learning_rate": Key(1e-3, "its peak", ranges.NOT_NEGATIVE),
    "schedule": Key("constant", "or cosine, linear, step, exponential, inverse_sqrt, wsd", TEXT),
    "warmup": Key("0 steps", "linear from zero", DURATION),
    "final_fraction": Key(0.0, "of the learning rate, at the end; never below it", ranges.FRACTION),
    "decay_duration": Key(
        "",
        "wsd: the fall at the end; exponential: until decay_factor; inverse_sqrt: until 1/sqrt(2)",
        DURATION,
    ),
    "decay_factor": Key(0.1, "step: at each boundary; exponential: see above", ranges.FACTOR),
    "boundaries": Key("", 'step: "30 epochs, 60 epochs", counted from the start', TEXT),
    "weight_decay": Key(0.0, "on matrices and kernels alone; 0: none", ranges.NOT_NEGATIVE),
    "clip_norm": Key(0.0, "global norm of the gradient; 0 is off", ranges.NOT_NEGATIVE),
    "state_dtype": Key("float32", "or bfloat16: half the bytes", one_of("float32", "bfloat16")),
}

EVALUATION: Table = {
    "type": Key("mean", "or per_example, distribution, modes, ...: docs/metrics.md", TEXT),
    "split": Key("", '"" as config.data.eval_split', TEXT),
    "every": Key("", '"" as config.train.eval_every', DURATION),
    "batch_size": Key(0, "0 as config.data.eval_batch_size", BATCH._replace(low=0)),
    "parameters": Key(
        "average", "the moving average if there is one; or last", one_of("average", "last")
    ),
}

GENERATE: Table = {
    "kind": Key("samples", "samples, interpolation, reconstructions or traversal", TEXT),
    "num": Key(
        0,
        "how many; by default 100 images, 50 reconstructions or 1 text",
        Range(0, 10**9, "[]", whole=True),
    ),
    "seed": Key(0, "of the noise", ranges.SEED),
    "prompt": Key("", "text: go on from this", TEXT),
    "max_new_tokens": Key(
        500, "text: how much to add; by default 500", Range(0, 2**22, "[]", whole=True)
    ),
    "temperature": Key(
        0.8,
        "text: below 1 is safer, 0 takes the likeliest token; by default 0.8",
        ranges.NOT_NEGATIVE,
    ),
    "top_k": Key(0, "text: draw among the k likeliest tokens; 0: among all", COUNT_OR_ZERO),
    "top_p": Key(1.0, "text: draw among the likeliest that have this probability", ranges.FACTOR),
}
"""What `aigc generate` and `Run.generate` are asked for; options of texts that decoding alone
knows are in `generate/options.py`."""

DRAWING = ("temperature", "top_k", "top_p")
OF_TEXTS = ("max_new_tokens", *DRAWING)

# The settings of single types of evaluations; one that is not here checks its own.
EVALUATION_SETTINGS: dict[str, Table] = {
    "mean": {},
    "per_example": {},
    "classification": {},
    "modes": {
        "num_samples": Key(2500, "generated points", COUNT),
        "seed": Key(0, "of the noise; samples are those of `aigc generate --seed`", ranges.SEED),
    },
    "translation": {
        "metrics": Key("bleu, chrf, exact_match", "some of these", TEXT),
        "num_beams": Key(1, "of beam search; 1: greedy", Range(1, 2**8, "[]", whole=True)),
        "length_penalty": Key(1.0, "of beams; above 0 long texts gain", Range(-1e3, 1e3, "[]")),
        "max_new_tokens": Key(0, "of a hypothesis; 0: what the model can write", COUNT_OR_ZERO),
        "lowercase": Key(False, "BLEU and chrF of texts in lower case", SWITCH),
        "tokenize": Key("13a", "BLEU: or intl, zh, char, none: what sacrebleu calls words", TEXT),
    },
    "reconstructions": {
        "metrics": Key("psnr, ssim, mean_squared_error", "and lpips, lpips_vgg16", TEXT),
    },
    "distribution": {
        "features": Key("digits", "or fashion, efficientnet, inception, pixels", TEXT),
        "metrics": Key(
            "frechet, kid, prdc",
            "and inception_score, class_histogram, stacked_modes, memorisation",
            TEXT,
        ),
        "num_samples": Key(0, "generated images; 0: as many as the split has", COUNT_OR_ZERO),
        "uint8": Key(True, "round generated images to the 256 levels of a file", SWITCH),
        "seed": Key(0, "of the noise; samples are those of `aigc generate --seed`", ranges.SEED),
        "k": Key(5, "prdc: the neighbour that a ball reaches to", FEW),
        "splits": Key(1, "inception_score: equal parts, each with a score", FEW),
        "weights": Key("", "inception: the file; see aigc_jax/metrics/networks.py", TEXT),
    },
}

# The fields of tasks and linen modules, of all or (CLASS.field) of one.
FIELDS: dict[str, Allowed] = {
    **dict.fromkeys(("latent_dim", "embed_dim", "code_dim", "num_codes"), SIZE),
    **dict.fromkeys(("mlp_dim", "num_kv_heads", "second_latent_dim"), SIZE_OR_ZERO),
    **dict.fromkeys(("CodeEncoder.features", "CodeDecoder.features", "residual_features"), SIZE),
    "DenseGaussian.features": each(SIZE),
    "num_blocks": Range(0, 1024, "[]", whole=True),
    **dict.fromkeys(("draws", "components"), Range(1, 2**16, "[]", whole=True)),
    **dict.fromkeys(("beta", "free_bits", "commitment", "restart"), ranges.NOT_NEGATIVE),
    "kl_warmup_steps": COUNT_OR_ZERO,
    "std": ranges.POSITIVE,
    "decay": ranges.DECAY_RATE,
    "num_heads": FEW,
    "num_encoder_layers": Range(0, 1024, "[]", whole=True),
    **dict.fromkeys(("num_layers", "kernel_size", "mlp_ratio"), Range(1, 1024, "[]", whole=True)),
    "features": each(SIZE, least=1),
    "SmallCNN.features": SIZE,
    "channels": each(SIZE, least=1),
    **dict.fromkeys(  # without hidden layers they are linear
        [f"Dense{part}.features" for part in ("Generator", "Discriminator", "Encoder", "Decoder")],
        each(SIZE),
    ),
    **dict.fromkeys(
        [f"Point{part}.features" for part in ("Generator", "Discriminator")], each(SIZE)
    ),
    "ResNetGenerator.features": each(SIZE, least=2),
    "discriminator_steps": Range(1, 1024, "[]", whole=True),
    **dict.fromkeys(("dropout", "label_smoothing"), Range(0, 1)),
    "penalty_every": COUNT,
    **dict.fromkeys(("penalty_weight", "auxiliary_weight"), ranges.NOT_NEGATIVE),
    **dict.fromkeys(("weight_clip", "instance_noise"), ranges.NOT_NEGATIVE),
    **dict.fromkeys(("instance_noise_steps", "GAN.num_classes"), COUNT_OR_ZERO),
    "packing": FEW,
    "halvings": Range(1, 16, "[]", whole=True),
    "momentum": ranges.DECAY_RATE,
    "slope": ranges.FRACTION,
    **dict.fromkeys(("epsilon", "norm_eps", "rope_base"), ranges.POSITIVE),
    **dict.fromkeys(("init_std", "logit_softcap", "z_loss"), ranges.NOT_NEGATIVE),
    "mask_rate": Range(0, 1, "(]"),
    "num_token_types": Range(1, 1024, "[]", whole=True),
    "window": COUNT_OR_ZERO,
}


def check_asked(**values: Any) -> None:
    """Every value, by its name in `GENERATE`, is one that it may have, or a `UserError`."""
    for name, value in values.items():
        ranges.check(value, GENERATE[name].allowed, name)


def field(cls: type, name: str, default: Any) -> Allowed:
    """What a field of a task or a module may be.

    Args:
        cls: the dataclass.
        name: of the field.
        default: of the field; one without a row in `FIELDS` may be what has the default's type.
    """
    if isinstance(default, bool):
        return SWITCH
    for owner in cls.__mro__:
        if f"{owner.__name__}.{name}" in FIELDS:
            return FIELDS[f"{owner.__name__}.{name}"]
    return FIELDS.get(name) or ranges.like(default)

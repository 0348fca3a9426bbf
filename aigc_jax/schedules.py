"""Learning-rate schedules: functions of the step, built from an optimizer section by name."""

from typing import Any

import jax.numpy as jnp
import optax

from aigc_jax.config import Config, steps
from aigc_jax.errors import UserError, lookup

# Schedule -> the keys that only some schedules read. `decay_factor` and `final_fraction` have
# defaults that mean something, so they are not refused where a schedule ignores them.
SCHEDULES = {
    "constant": (),
    "cosine": (),
    "linear": (),
    "step": ("boundaries",),
    "exponential": ("decay_duration",),
    "inverse_sqrt": ("decay_duration",),
    "wsd": ("decay_duration",),
}


def make_schedule(
    config: Config, key: str, num_steps: int, batch_size: int, num_examples: int
) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up, then the schedule's decay.

    With `peak` the learning rate, `w` the steps of warm-up, `t = step - w`, `d` the steps of
    `decay_duration`, `f` the `decay_factor` and `end = peak * final_fraction`, it is
    `peak * step / w` during the warm-up and then

    - constant: `peak`;
    - cosine: `end + (peak - end) * (1 + cos(pi * t / (num_steps - w))) / 2`;
    - linear: `peak + (end - peak) * t / (num_steps - w)`;
    - step: `peak * f ** n`, where `n` of the boundaries are passed;
    - exponential: `peak * f ** (t / d)`;
    - inverse_sqrt: `peak * sqrt(d / (d + t))`, with `d = w` when no decay_duration is given:
      the schedule of Vaswani et al., "Attention Is All You Need", 2017, section 5.3;
    - wsd: `peak` until the last `d` steps of the run, then linearly to `end`: the schedule of
      Hu et al., "MiniCPM", 2024, section 4, with the linear decay of Haegele et al., "Scaling Laws
      and Compute-Optimal Training Beyond Fixed Training Durations", 2024.

    Step, exponential and inverse_sqrt never fall below `end`.

    Args:
        config: an `aigc_jax.config.optimizer(...)` section, its values in their ranges.
        key: where it stands in the config, for error messages.
        num_steps: steps of the whole run.
        batch_size: examples per step, for durations in epochs or examples.
        num_examples: examples per epoch.

    Raises:
        UserError: an unknown schedule, a duration that is missing, does
            not fit the run or is not read by this schedule.
    """
    reads = lookup(SCHEDULES, config.schedule, f"{key}.schedule")
    for name in ("decay_duration", "boundaries"):
        if config[name] and name not in reads:
            readers = ", ".join(n for n, names in SCHEDULES.items() if name in names)
            raise UserError(
                f'{key}.{name}="{config[name]}" is not read by {key}.schedule={config.schedule}, '
                f'but by {readers}; set it to ""'
            )

    def duration(text: Any, name: str) -> int:
        return steps(text, f"{key}.{name}", batch_size, num_examples)

    warmup = duration(config.warmup, "warmup")
    decay = duration(config.decay_duration, "decay_duration")
    if config.schedule in ("exponential", "wsd") and not decay:
        raise UserError(
            f"{key}.schedule={config.schedule} needs {key}.decay_duration, "
            'e.g. "10 epochs" or "1000 steps"'
        )
    if config.schedule == "inverse_sqrt" and not (decay or warmup):
        raise UserError(
            f"{key}.schedule=inverse_sqrt needs {key}.warmup or {key}.decay_duration, "
            'e.g. "1000 steps"'
        )
    if config.schedule == "wsd" and warmup + decay > num_steps:
        raise UserError(
            f"{key}.warmup and {key}.decay_duration take {warmup} + {decay} steps, "
            f"more than the {num_steps} of the run; shorten one"
        )
    passed = []
    if config.schedule == "step":
        passed = _boundaries(config.boundaries, f"{key}.boundaries", warmup, duration)
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    length, factor = max(num_steps - warmup, 1), config.decay_factor

    def falling(fraction):
        # `join_schedules` evaluates it during the warm-up too, at negative steps.
        return lambda t: jnp.maximum(peak * fraction(jnp.maximum(t, 0)), end)

    def stable_then_linear():
        parts = [optax.constant_schedule(peak), optax.linear_schedule(peak, end, decay)]
        return optax.join_schedules(parts, [num_steps - warmup - decay])

    time = decay or warmup
    schedules = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, end, length),
        "step": lambda: falling(
            optax.piecewise_constant_schedule(1.0, {b: factor for b in passed})
        ),
        "exponential": lambda: falling(lambda t: factor ** (t / decay)),
        "inverse_sqrt": lambda: falling(lambda t: jnp.sqrt(time / (time + t))),
        "wsd": stable_then_linear,
    }
    schedule = schedules[config.schedule]()
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def _boundaries(text: str, key: str, warmup: int, duration) -> list[int]:
    """`"30 epochs, 60 epochs"` in steps since the warm-up."""
    found = [duration(part.strip(), "boundaries") for part in str(text).split(",")]
    if any(after <= before for before, after in zip([warmup, *found], found)):
        raise UserError(
            f'{key}="{text}" is not a growing list of durations after the warm-up; '
            'write e.g. "30 epochs, 60 epochs"'
        )
    return [step - warmup for step in found]

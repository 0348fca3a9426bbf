"""What does not go together is refused in one line: what was given, why, and what to set."""

import jax
import optax
import pytest
from runs import ROOT

from aigc_jax import command_line, members, tasks
from aigc_jax.errors import UserError
from aigc_jax.models.gan import ConvDiscriminator, ConvGenerator
from aigc_jax.tasks import gan_checks
from aigc_jax.tasks.family import Spec
from aigc_jax.tasks.gan_task import GAN

DIGITS = Spec("mnist", (28, 28, 1), (-1.0, 1.0), num_classes=10)
UNLABELLED = DIGITS._replace(name="photos", num_classes=None)
POINTS = Spec("ring8", num_classes=8, coordinates=2)
PICTURES = Spec("pictures", (40, 40, 3), (-1.0, 1.0))


def build(file, spec=DIGITS, **overrides):
    config = command_line.load(str(ROOT / "configs" / "gan" / file))
    config = tasks.filled(config)
    for key, value in overrides.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    tasks.check(config)
    tx = dict.fromkeys(("generator", "discriminator"), optax.sgd(0.1))
    return tasks.build(config, spec, tx)


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        (DIGITS, "neutral.py"),
        (DIGITS, "neutral.py:hinge"),
        (DIGITS, "neutral.py:dragan"),
        (DIGITS, "neutral.py:wgan"),
        (DIGITS, "wgan_gp.py:mnist"),
        (DIGITS, "cgan.py"),
        (DIGITS, "cgan.py:concat"),
        (DIGITS, "cgan.py:acgan"),
        (POINTS, "mixture.py:grid_packed"),
        *(
            (DIGITS._replace(shape=(side, side, 3)), f"{name}.py:{side}".removesuffix(":32"))
            for name in ("sngan", "wgan_gp")
            for side in (32, 48, 64, 128)
        ),
        (DIGITS._replace(shape=(32, 32, 3)), "cgan.py:cifar10"),
        (DIGITS._replace(shape=(128, 128, 3)), "cgan.py:128"),
    ],
)
def test_every_config_builds(spec, file):
    task = build(file, spec)
    assert task.num_classes == (10 if "cgan" in file else 0)


def test_spectral_norm_without_batch_norm_bounds_a_wasserstein_critic():
    norms = {"norm": False, "spectral_norm": True}
    given = {f"model__discriminator__{name}": value for name, value in norms.items()}
    assert build("neutral.py", task__loss="wasserstein", **given).loss == "wasserstein"


def test_a_penaltys_weight_may_be_that_of_several_runs():
    config = tasks.filled(command_line.load(str(ROOT / "configs" / "gan" / "wgan_gp.py:mnist")))

    def checked(weight):
        gan_checks.check(members.at(config, {"task.penalty_weight": weight}), DIGITS)
        return weight

    jax.eval_shape(checked, 3.0)


def test_a_class_reaches_the_one_batch_norm_after_the_dense_layer():
    one = {"features": (8,), "class_norm": True, "norm_first": True}
    given = {f"model__generator__{name}": value for name, value in one.items()}
    assert build("dcgan.py", task__conditioning="projection", **given).num_classes == 10


def test_what_does_nothing_has_its_default():
    for key, neutral, *_ in gan_checks.SETTINGS:
        *path, name = key.split(".")
        made = {"task": GAN, "generator": ConvGenerator, "discriminator": ConvDiscriminator}
        assert getattr(made[path[-1]], name) == neutral


@pytest.mark.parametrize(
    ("variant", "rate", "b1"), [("", 5e-5, 0.0), (":wgan", 5e-5, 0.5), (":dragan", 1e-4, 0.5)]
)
def test_the_neutral_optimizers_are_those_of_compare_gan(variant, rate, b1):
    config = command_line.load(str(ROOT / "configs" / "gan" / f"neutral.py{variant}"))
    for network in ("generator", "discriminator"):
        given = config.optimizer[network]
        assert (given.name, given.learning_rate, given.args.b1) == ("adam", rate, b1)


@pytest.mark.parametrize(
    ("message", "file", "spec", "overrides"),
    [
        ('unknown config.task.loss "hnge"; did you mean', "neutral.py", DIGITS,
         {"task__loss": "hnge"}),
        ("mixes the images of a batch; set config.model.discriminator.norm=False", "neutral.py",
         DIGITS, {"task__penalty": "gradient_penalty"}),
        ("no bound unless .* set config.task.weight_clip=0.01", "neutral.py", DIGITS,
         {"task__loss": "wasserstein"}),
        ("no bound unless", "neutral.py", DIGITS,
         {"task__loss": "wasserstein", "model__discriminator__spectral_norm": True}),
        ("no bound unless .* config.task.penalty_weight=10", "wgan_gp.py:mnist", DIGITS,
         {"task__penalty_weight": 0.0}),
        ("num_classes=7 does nothing without classes.* set it to 0", "neutral.py", DIGITS,
         {"task__num_classes": 7}),
        ("penalty_every=16 does nothing without a penalty", "neutral.py", DIGITS,
         {"task__penalty_every": 16}),
        ("penalty_weight=3.0 does nothing without a penalty.* set it to 10.0", "neutral.py", DIGITS,
         {"task__penalty_weight": 3.0}),
        ("instance_noise_steps=9 does nothing without noise", "neutral.py", DIGITS,
         {"task__instance_noise_steps": 9}),
        ("auxiliary_weight=3.0 does nothing without .*=auxiliary_classifier", "cgan.py", DIGITS,
         {"task__auxiliary_weight": 3.0}),
        ("batch_norm=moving does nothing without batch norm in the generator; set it to standing",
         "dense.py", DIGITS, {"task__batch_norm": "moving"}),
        ("class_norm=True does nothing without batch norm", "dcgan.py", DIGITS, {
            "task__conditioning": "projection",
            "model__generator__class_norm": True,
            "model__generator__features": (8,),
        }),
        ("discriminator.norm=True does nothing without a second entry", "dcgan.py", DIGITS,
         {"model__discriminator__norm": True, "model__discriminator__features": (8,)}),
        ("no labels to smooth; set it to 0", "neutral.py:hinge", DIGITS,
         {"task__label_smoothing": 0.1}),
        ("set config.train.accumulate=1", "neutral.py", DIGITS,
         {"task__loss": "relativistic_average", "train__accumulate": 2}),
        ("needs labels, and photos has none", "cgan.py", UNLABELLED, {}),
        ("num_classes=5, and mnist has 10; set it to 0", "cgan.py", DIGITS,
         {"task__num_classes": 5}),
        ("class_norm=True needs classes", "neutral.py", DIGITS,
         {"model__generator__class_norm": True}),
        ("the images of a pack have no one class", "cgan.py", DIGITS, {"task__packing": 2}),
        ("batch_size=64 is no whole number of packs.* needs a multiple of 3, e.g. 66",
         "neutral.py", DIGITS, {"task__packing": 3}),
        ("unknown augmentation in config.task.diff_augment \"colour\"", "neutral.py", DIGITS,
         {"task__diff_augment": "colour,cutout"}),
        ("diff_augment is for images", "mixture.py", POINTS, {"task__diff_augment": "color"}),
        ("images of 40x40 .* multiples of 64; .* e.g. to 64", "sngan.py", PICTURES,
         {"model__generator__features": (8,) * 7}),
        ("images of 28x28 .* multiples of 8; .* e.g. to 32", "sngan.py", DIGITS, {}),
        ("halvings=4 takes sides that are multiples of 16", "sngan.py", PICTURES,
         {"model__discriminator__halvings": 4}),
        ("halvings=9, and there are 4 blocks", "sngan.py", PICTURES,
         {"model__discriminator__halvings": 9}),
        ("unknown config.model.discriminator.pool", "sngan.py", PICTURES,
         {"model__discriminator__pool": "max"}),
        ("the neutral architecture has three", "neutral.py", DIGITS,
         {"model__generator__features": (8, 8)}),
        ("makes points of a plane, and mnist holds none", "mixture.py", DIGITS, {}),
        ("this task needs images; config.data.source=ring8 holds none", "neutral.py", POINTS, {}),
        ("penalty_every=0 is out of range", "wgan_gp.py:mnist", DIGITS,
         {"task__penalty_every": 0}),
        ("label_smoothing=1.5 is out of range", "neutral.py", DIGITS,
         {"task__label_smoothing": 1.5}),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_what_to_do(message, file, spec, overrides):
    with pytest.raises(UserError, match=message) as error:
        build(file, spec, **overrides)
    assert "\n" not in str(error.value)

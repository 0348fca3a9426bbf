"""Eight simulated devices, shapes checked at run time, and steps compiled once per session."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

install_import_hook("aigc_jax", "beartype.beartype")

import pytest


def pytest_addoption(parser):
    parser.addoption("--renew-goldens", action="store_true", help="rewrite tests/golden/")


@pytest.fixture
def renew(request):
    """Whether goldens are to be rewritten rather than compared with."""
    return request.config.getoption("--renew-goldens")

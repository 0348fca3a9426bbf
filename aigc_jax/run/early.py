"""Imported first by the command: a Ctrl-C while the other modules load ends it in one line."""

import os
import signal
import sys


def _end(_number, _frame) -> None:
    os.write(2, b"interrupted by SIGINT\n")
    os._exit(130)


spec = getattr(sys.modules["__main__"], "__spec__", None)
if spec.name == "aigc_jax.__main__" if spec else os.path.basename(sys.argv[0]) == "aigc":
    signal.signal(signal.SIGINT, _end)

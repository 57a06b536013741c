"""The network of a .tflite without its post-processing, of which the latency is measured apart."""

import os

import numpy as np
import pytest

from od_qat.model_files import interpreter, tflite_edits, tflite_graph
from od_qat.model_files.names import POST_PROCESS
from od_qat.scoring import latency_pairs
from tests.test_scoring import SIZE

pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_the_network_alone_computes_what_goes_into_the_post_processing(kind, model_dir, tmp_path):
    path = os.path.join(model_dir, kind + ".tflite")
    with open(path, "rb") as stream:
        whole = stream.read()
    network = tflite_edits.without_post_processing(whole)
    assert tflite_edits.without_post_processing(network) is None
    (tmp_path / "network.tflite").write_bytes(network)
    graph, alone = tflite_graph.read(path), tflite_graph.read(str(tmp_path / "network.tflite"))
    assert [op.type for op in graph.ops] == [op.type for op in alone.ops] + [POST_PROCESS]
    scores = graph.ops[-1].inputs[1]
    assert alone.outputs == (scores,)
    picture = np.random.RandomState(0).randint(0, 128, [1, SIZE, SIZE, 3]) + 120 * (kind != "int8")
    found = []
    for model, index in ((whole, scores), (network, None)):
        opened = interpreter.without_delegates(model, experimental_preserve_all_tensors=True)
        opened.allocate_tensors()
        (given,) = opened.get_input_details()
        opened.set_tensor(given["index"], picture.astype(given["dtype"]))
        opened.invoke()
        found.append(opened.get_tensor(opened.get_output_details()[0]["index"] if index is None else index))
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].std() > 0


def test_latency_of_the_networks(model_dir):
    paths = {"int8": os.path.join(model_dir, "int8.tflite"), "pb": os.path.join(model_dir, "canonical.pb")}
    with latency_pairs.of_networks(paths) as networks:
        assert list(networks) == ["int8"]
        times = latency_pairs.medians(networks, None, rounds=1)
        assert list(times) == ["int8"] and times["int8"] > 0
        temporary = networks["int8"].path
    assert not os.path.exists(temporary)

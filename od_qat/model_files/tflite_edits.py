"""Makes other .tflite files of one: something is attached to it, or its post-processing is cut off."""

from typing import Any, Optional

from od_qat.model_files import tflite_file, tflite_graph
from od_qat.model_files.names import POST_PROCESS


def with_attached(model: bytes, name: str, data: bytes) -> bytes:
    """The same model with data in a buffer of its own, under a name of its metadata.

    Raises:
      EnvironmentProblem: without LiteRT's schema.
    """
    schema = tflite_graph.schema()
    content = schema.ModelT.InitFromPackedBuf(model, 0)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(data)
    entry.name, entry.buffer = name, len(content.buffers)
    content.buffers.append(buffer)
    content.metadata = list(content.metadata or []) + [entry]
    return _packed(content, len(model) + len(data))


def without_post_processing(model: bytes) -> Optional[bytes]:
    """The network alone, which ends with the scores of all anchors; None if the model has no such op.

    All ops of the network are in it, those of the boxes too. Its other outputs are not read.

    Raises:
      EnvironmentProblem: without LiteRT's schema.
    """
    content = tflite_graph.schema().ModelT.InitFromPackedBuf(model, 0)
    graph = content.subgraphs[0]
    custom = [code.customCode for code in content.operatorCodes]
    places = [
        place
        for place, operation in enumerate(graph.operators)
        if custom[operation.opcodeIndex] in (POST_PROCESS, POST_PROCESS.encode())
    ]
    if len(places) != 1:
        return None
    operation = graph.operators.pop(places[0])
    graph.outputs = [operation.inputs[1]]
    content.signatureDefs = []
    return _packed(content, len(model))


def _packed(content: Any, size: int) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(size + 4096)
    builder.Finish(content.Pack(builder), tflite_file.IDENTIFIER)
    return bytes(builder.Output())

"""Registers `[od_qat.layers]` (messages/layers.py) as an extension of the OD API's message GraphRewriter."""

from typing import Optional

from google.protobuf import descriptor_pool

from od_qat.messages import layers

_extension: Optional[object] = None


def extension():
    """The descriptor of the extension, for `message.Extensions[extension()]`. The first call registers it.

    None if GraphRewriter takes no extensions: trees of early 2019 reserve no numbers for them.
    """
    global _extension
    if _extension is None:
        from object_detection.protos import graph_rewriter_pb2

        if graph_rewriter_pb2.GraphRewriter.DESCRIPTOR.is_extendable:
            _extension = layers.register(graph_rewriter_pb2.GraphRewriter, descriptor_pool.Default())
    return _extension

"""The messages of a classifier's config, defined at run time, so that no protoc is needed.

A config is proto text, as the OD API's pipeline configs are; docs/classifiers.md describes the fields.
"""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool

from od_qat.messages import classes, layers

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "float": _FIELD.TYPE_FLOAT,
    "string": _FIELD.TYPE_STRING,
}
# Message -> fields: name, type, default. The number of a field is its place. A type that ends in * is
# repeated, and other types than the four above are messages. Fields of `training` are called as the flags of
# slim's train_image_classifier.py, those of `quantization` as in the OD API's graph_rewriter.proto.
_MESSAGES = {
    "Network": (
        ("name", "string", None),
        ("num_classes", "int32", None),
        ("image_size", "int32", None),
        ("channels", "int32", "3"),
        ("preprocessing", "string", None),
        ("batch_norm_decay", "float", None),
    ),
    "Input": (
        ("records", "string*", None),
        ("folder", "string", None),
        ("labels_offset", "int32", "0"),
    ),
    "Training": (
        ("num_steps", "int32", "0"),
        ("batch_size", "int32", "32"),
        ("optimizer", "string", "rmsprop"),
        ("learning_rate", "float", "0.01"),
        ("learning_rate_decay_type", "string", "exponential"),
        ("end_learning_rate", "float", "0.0001"),
        ("learning_rate_decay_factor", "float", "0.94"),
        ("num_epochs_per_decay", "float", "2"),
        ("momentum", "float", "0.9"),
        ("weight_decay", "float", "0.00004"),
        ("label_smoothing", "float", "0"),
        ("gradient_clipping_by_norm", "float", "0"),
        ("fine_tune_checkpoint", "string", None),
        ("checkpoint_exclude_scopes", "string*", None),
        ("trainable_scopes", "string*", None),
        ("sync_replicas", "bool", "false"),
        ("replicas_to_aggregate", "int32", "1"),
        ("keep_checkpoint_every_n_hours", "float", "10000"),
    ),
    "Evaluation": (
        ("batch_size", "int32", "100"),
        ("eval_interval_secs", "int32", "300"),
    ),
    "Quantization": (
        ("delay", "int32", "500000"),
        ("weight_bits", "int32", "8"),
        ("activation_bits", "int32", "8"),
        ("symmetric", "bool", "false"),
    ),
    "GraphRewriter": (("quantization", "Quantization", None),),
    "Classifier": (
        ("network", "Network", None),
        ("train_input", "Input", None),
        ("eval_input", "Input", None),
        ("training", "Training", None),
        ("evaluation", "Evaluation", None),
        ("graph_rewriter", "GraphRewriter", None),
    ),
}
_PACKAGE = "od_qat.classifiers"
# As in the OD API's GraphRewriter.
_FIRST_EXTENSION, _AFTER_LAST_EXTENSION = 1000, 2**29


@functools.lru_cache(maxsize=None)
def classifier_class():
    """The class of the message Classifier.

    Its pool is its own, since the extension [od_qat.layers] has the same name for the OD API's GraphRewriter.
    """
    proto = descriptor_pb2.FileDescriptorProto(
        name="od_qat/classifier.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = proto.message_type.add(name=name)
        for number, (field_name, kind, default) in enumerate(fields, 1):
            field = message.field.add(name=field_name, number=number)
            field.label = _FIELD.LABEL_REPEATED if kind.endswith("*") else _FIELD.LABEL_OPTIONAL
            field.type = _TYPES.get(kind.rstrip("*"), _FIELD.TYPE_MESSAGE)
            if field.type == _FIELD.TYPE_MESSAGE:
                field.type_name = ".{}.{}".format(_PACKAGE, kind)
            if default is not None:
                field.default_value = default
        if name == "GraphRewriter":
            message.extension_range.add(start=_FIRST_EXTENSION, end=_AFTER_LAST_EXTENSION)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(proto.SerializeToString())
    found = pool.FindMessageTypeByName(_PACKAGE + ".Classifier")
    layers.register(classes.of(pool.FindMessageTypeByName(_PACKAGE + ".GraphRewriter")), pool)
    return classes.of(found)

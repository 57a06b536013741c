"""Makes the Python classes of messages that are defined at run time, in any version of protobuf."""


def of(descriptor):
    """The class of a message, by its descriptor."""
    from google.protobuf import message_factory

    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    # before protobuf 4.22
    return message_factory.MessageFactory(descriptor.file.pool).GetPrototype(descriptor)

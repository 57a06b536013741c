"""Pictures of three colours in a folder and in slim's records, and configs of networks for them."""

import io
import os

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (30, 190, 60), "red": (210, 40, 30)}
EACH = 12


def pictures(seed=0):
    """(name of the class, label, uint8 [height, width, 3]) of EACH pictures of each colour, of many sizes."""
    random = np.random.RandomState(seed)
    for label, name in enumerate(sorted(COLOURS)):
        for _ in range(EACH):
            size = random.randint(36, 60, 2)
            noise = random.randint(-30, 31, [size[0], size[1], 3])
            yield name, label, np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)


def encoded(picture, kind="PNG"):
    """The bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def write_folder(folder, seed=0):
    """One sub-folder for each class."""
    for number, (name, _, picture) in enumerate(pictures(seed)):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        with open(os.path.join(folder, name, "{:03}.png".format(number)), "wb") as stream:
            stream.write(encoded(picture))
    return folder


def write_records(path, seed=0, offset=0, features=None, grey=False):
    """slim's TFRecords, with labels.txt beside them; `features` changes those of each example in place.

    Grey ones are as MNIST's, of 28 by 28 pixels.
    """
    from od_qat.compat import tf

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.python_io.TFRecordWriter(path) as writer:
        for _, label, picture in pictures(seed):
            example = tf.train.Example()
            found = example.features.feature
            picture = picture[:28, :28, 0] if grey else picture
            found["image/encoded"].bytes_list.value.append(encoded(picture))
            found["image/format"].bytes_list.value.append(b"png")
            found["image/class/label"].int64_list.value.append(label + offset)
            if features:
                features(found)
            writer.write(example.SerializeToString())
    with open(os.path.join(os.path.dirname(path), "labels.txt"), "w") as stream:
        for label, name in enumerate(sorted(COLOURS)):
            stream.write("{}:{}\n".format(label + offset, name))
    return path


def config(train, evaluation, quantised, network="mobilenet_v1_025", more=""):
    """The text of a config; train and evaluation are texts of input blocks."""
    return """
network {{ name: "{}" num_classes: 3 image_size: 32 {} }}
train_input {{ {} }}
eval_input {{ {} }}
training {{
  batch_size: 18
  num_steps: 4
  optimizer: "momentum"
  learning_rate: 0.005
  learning_rate_decay_type: "fixed"
}}
evaluation {{ batch_size: 5 }}
{}
""".format(
        network,
        more,
        train,
        evaluation,
        "graph_rewriter { quantization { delay: 0 } }" if quantised else "",
    )

"""Which op types the rewriter quantises, walks through, or leaves float: exact sets, one home.

The sets of the layer patterns are contrib's (tensorflow/contrib/quantize/python/quantize.py, TF 1.15).
"""

WEIGHTED = frozenset(["Conv2D", "DepthwiseConv2dNative", "MatMul"])
# ... whose weights can have a range for each output channel. Not MatMul: TensorFlow 2.21's converter fails on
# it ("'tfl.transpose' op has mismatched quantized axes").
PER_CHANNEL = frozenset(["Conv2D", "DepthwiseConv2dNative"])
# Ops with weights that no pattern covers; the report names them.
WEIGHTED_UNSUPPORTED = frozenset(
    ["Conv2DBackpropInput", "Conv3D", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"]
)
# Ops that run functions, in whose bodies nothing is rewritten: TensorFlow 2's control flow.
CALLS = frozenset(
    ["If", "PartitionedCall", "StatefulPartitionedCall", "StatelessIf", "StatelessWhile", "While"]
)
ADD = frozenset(["Add", "AddV2"])
BIAS_ADD = frozenset(["BiasAdd"]) | ADD
RELU = frozenset(["Relu", "Relu6"])
ACTIVATION = RELU | frozenset(["Identity"])
BATCH_NORM = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
# What tf.nn.moments is made of, which an unfused batch norm takes its batch's statistics from.
OF_MOMENTS = frozenset(["Identity", "Mean", "Reshape", "SquaredDifference", "Squeeze", "StopGradient"])
VARIABLE = frozenset(["Variable", "VariableV2", "VarHandleOp"])
FAKE_QUANT = frozenset(
    ["FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVarsPerChannel"]
)
# A range passes through these unchanged when contrib looks for a quantised source of an Add or Mul ...
RANGE_KEEPING = frozenset(["Reshape", "Identity", "BatchToSpaceND", "SpaceToBatchND", "MaxPool", "Max"])
# ... and through these when contrib looks for a fake quant that is there already.
ALREADY_QUANTISED_THROUGH = frozenset(["Reshape", "Identity"])
INTERMEDIATE = ADD | frozenset(["Mul"])
CONCAT = frozenset(["ConcatV2"])
# placement='full': between layers, the output of these gets a range of its own where no pattern gave it one
OWN_RANGE = RELU | INTERMEDIATE | frozenset(["LeakyRelu", "Maximum", "Mean", "Minimum", "RealDiv", "Sub"])
# and these hand on values whose range is trained elsewhere: their input's, which their TFLite kernels keep.
HANDS_ON_RANGE = frozenset(
    [
        "AvgPool",
        "BatchToSpaceND",
        "ConcatV2",
        "DepthToSpace",
        "ExpandDims",
        "Identity",
        "IdentityN",
        "Max",
        "MaxPool",
        "MirrorPad",
        "Pack",
        "Pad",
        "PadV2",
        "Reshape",
        "ResizeBilinear",
        "ResizeNearestNeighbor",
        "Slice",
        "SpaceToBatchND",
        "SpaceToDepth",
        "Split",
        "SplitV",
        "Squeeze",
        "StopGradient",
        "StridedSlice",
        "Tile",
        "Transpose",
    ]
)
# ... of these not their first input's.
SEVERAL_DATA = frozenset(["ConcatV2", "Pack"])
DATA_INPUT = {"Split": 1}
# The output range of these TFLite kernels is fixed.
FIXED_RANGE = frozenset(["Sigmoid", "Softmax", "Tanh"])
# What these read is not data.
OF_SHAPES = frozenset(["Rank", "Shape", "ShapeN", "Size"])

# What may stand between layers without a range of its own, but for what hands one on.
NEEDS_NO_RANGE = WEIGHTED | WEIGHTED_UNSUPPORTED | FIXED_RANGE | FAKE_QUANT | OF_SHAPES

# A dropout's mask: random numbers, and the ops that make ones and zeros of them.
RANDOM = frozenset(["RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2"])
OF_MASKS = frozenset(["Add", "AddV2", "Cast", "Floor", "GreaterEqual", "Less", "Mul", "Sub"])

TRAINING_OPS_PREFIXES = ("Apply", "ResourceApply", "SparseApply", "ResourceSparseApply")
# What only the gradients of a layer, its batch norm or its activation are made of.
GRADIENT_OPS = frozenset(
    [
        "BiasAddGrad",
        "Conv2DBackpropFilter",
        "DepthwiseConv2dNativeBackpropFilter",
        "FusedBatchNormGrad",
        "FusedBatchNormGradV2",
        "FusedBatchNormGradV3",
        "Relu6Grad",
        "ReluGrad",
    ]
)

_SUPPORT = (
    (WEIGHTED, "a layer, where its weights are a variable: weights quantised, per tensor or per channel"),
    (WEIGHTED - PER_CHANNEL, "per tensor only: the converter takes nothing else"),
    (BATCH_NORM, "folded into its layer; behind no layer (pre-activation) one of its own"),
    (BIAS_ADD | ACTIVATION, "behind a layer: quantised with it; its fake quant absorbs a ReLU in training"),
    (OWN_RANGE, "between layers: a range of its own"),
    (CONCAT, "one range for all its inputs"),
    (HANDS_ON_RANGE - CONCAT, "its input's range"),
    (FIXED_RANGE, "none needed: the range of its TFLite kernel is fixed"),
    (WEIGHTED_UNSUPPORTED, "stays float; the report names it, and what else is between layers"),
)


def table() -> str:
    """The README's table of supported ops, as Markdown (placement='full')."""
    lines = ["| op | what is done |", "| --- | --- |"]
    for ops, text in _SUPPORT:
        lines.append("| {} | {} |".format(" ".join("`{}`".format(op) for op in sorted(ops)), text))
    return "\n".join(lines)

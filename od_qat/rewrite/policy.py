"""Lists the op types that the rewriter quantizes, passes through, or leaves float.

The sets of the layer patterns are contrib's (tensorflow/contrib/quantize/python/quantize.py, TF 1.15).
"""

import functools
import re

# A transposed convolution is the op that also is the gradient of a convolution with respect to its data.
TRANSPOSED = "Conv2DBackpropInput"
WEIGHTED = frozenset(["Conv2D", TRANSPOSED, "DepthwiseConv2dNative", "MatMul"])
# Those whose weights can have a range for each output channel. For MatMul, TensorFlow 2.21's converter fails
# ("'tfl.transpose' op has mismatched quantized axes"), and a transposed convolution's weights [h, w, out, in]
# do not have them in the last dimension.
PER_CHANNEL = frozenset(["Conv2D", "DepthwiseConv2dNative"])
BATCH_MATMUL = frozenset(["BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"])
# Ops with weights that no pattern covers; the report names them. (A BatchMatMul may be a weighted sum.)
WEIGHTED_UNSUPPORTED = frozenset(["Conv3D", "Einsum"]) | BATCH_MATMUL
# TensorFlow 2's tf.cond, and the ops that make the result of a tf.cond of either version.
BRANCHES = frozenset(["If", "StatelessIf"])
BRANCH_ENDS = BRANCHES | frozenset(["Merge"])
# Ops that call functions, as TensorFlow 2's control flow does. Function bodies are not rewritten.
CALLS = BRANCHES | frozenset(["PartitionedCall", "StatefulPartitionedCall", "StatelessWhile", "While"])
ADD = frozenset(["Add", "AddV2"])
BIAS_ADD = frozenset(["BiasAdd"]) | ADD
RELU = frozenset(["Relu", "Relu6"])
LEAKY_RELU = frozenset(["LeakyRelu"])
ACTIVATION = RELU | frozenset(["Identity"])
BATCH_NORM = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
# The last op of a batch norm of any form: fused, unfused, or fused with a Reshape behind it.
ENDS_BATCH_NORM = BATCH_NORM | ADD | frozenset(["Reshape"])
# What the last op of a layer can be.
ENDS_LAYER = WEIGHTED | BIAS_ADD | ENDS_BATCH_NORM | frozenset(["BatchToSpaceND"])
# The ops with which an unfused batch norm computes the statistics of a batch: those of tf.nn.moments, and
# those of a batch norm that is synchronized between replicas (sums of values and of their squares).
OF_MOMENTS = frozenset(["Identity", "Mean", "Reshape", "SquaredDifference", "Squeeze", "StopGradient"])
OF_MOMENTS |= frozenset(["DivNoNan", "IdentityN", "Maximum", "RealDiv", "Square", "Sub", "Sum"])
VARIABLE = frozenset(["Variable", "VariableV2", "VarHandleOp"])
# The two fake quants that a rewrite adds, and all that a model may have itself.
FAKE_QUANT_PER_TENSOR = "FakeQuantWithMinMaxVars"
FAKE_QUANT_PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"
FAKE_QUANT = frozenset([FAKE_QUANT_PER_TENSOR, FAKE_QUANT_PER_CHANNEL, "FakeQuantWithMinMaxArgs"])
# contrib looks through these for a quantized source of an Add or Mul ...
RANGE_KEEPING = frozenset(["Reshape", "Identity", "BatchToSpaceND", "SpaceToBatchND", "MaxPool", "Max"])
# ... and through these for a fake quant that exists already.
ALREADY_QUANTISED_THROUGH = frozenset(["Reshape", "Identity"])
INTERMEDIATE = ADD | frozenset(["Mul"])
CONCAT = frozenset(["ConcatV2"])
# All ops that need one range for all inputs. (A Pack of one tensor has it anyway; upsamplings have these.)
JOINS = CONCAT | frozenset(["Pack"])
# With placement='full', between layers: the output of these gets a range of its own if no pattern has one,
OWN_RANGE = (
    RELU
    | LEAKY_RELU
    | INTERMEDIATE
    | frozenset(["Maximum", "Mean", "Minimum", "Neg", "PadV2", "RealDiv", "Sub"])
)
# and the output of these has the range of the input, which their TFLite kernels keep.
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
SPLIT = frozenset(["Split", "SplitV"])
# The input that has the data, if that is not the first. (For JOINS see the planner.)
DATA_INPUT = {"Split": 1, TRANSPOSED: 2}
# The TFLite kernels of these have a fixed output range.
FIXED_RANGE = frozenset(["Sigmoid", "Softmax", "Tanh"])
# Ops whose output is quantized without a range of its own. Sigmoid and Tanh are among them, so that products
# with gates inside a network have quantized inputs.
STAYS_QUANTISED = HANDS_ON_RANGE | FIXED_RANGE - frozenset(["Softmax"])
# These read the shape of a tensor, not its data.
OF_SHAPES = frozenset(["Rank", "Shape", "ShapeN", "Size"])

# Besides STAYS_QUANTISED, the ops that need no range of their own between layers.
NEEDS_NO_RANGE = WEIGHTED | WEIGHTED_UNSUPPORTED | FIXED_RANGE | FAKE_QUANT | OF_SHAPES

# The ops of a dropout's mask or of added noise: those that make random numbers, those that turn them into
# ones and zeros or scale them, and those that apply them to data.
RANDOM = frozenset(
    [
        "RandomStandardNormal",
        "RandomUniform",
        "StatelessRandomNormal",
        "StatelessRandomNormalV2",
        "StatelessRandomUniform",
        "StatelessRandomUniformV2",
        "TruncatedNormal",
    ]
)
OF_MASKS = frozenset(["Add", "AddV2", "Cast", "Floor", "GreaterEqual", "Less", "Mul", "Sub"])
ADDS_NOISE = ADD | frozenset(["Sub"])
NOISY = ADDS_NOISE | frozenset(["Mul", "RealDiv", "Select", "SelectV2"])

TRAINING_OPS_PREFIXES = ("Apply", "ResourceApply", "SparseApply", "ResourceSparseApply")
# Ops that only gradients have. Others are all types that end in Grad, GradV2, ..., and the op that
# tf.gradients starts with: some gradients (of a softplus, of a sum of layers without bias) have no such type.
GRADIENT_OPS = frozenset(["Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter"])
_GRADIENT_TYPE = re.compile(r"Grad(V\d+)?$")
_GRADIENT_NAME = re.compile(r"(^|/)gradients(_\d+)?/grad_ys_\d+")


def is_gradient(operation) -> bool:
    """Whether an op computes a gradient."""
    if _is_gradient_type(operation.type):
        return True
    return "grad_ys" in operation.name and bool(_GRADIENT_NAME.search(operation.name))


@functools.lru_cache(maxsize=None)
def _is_gradient_type(kind: str) -> bool:
    return kind in GRADIENT_OPS or bool(_GRADIENT_TYPE.search(kind))


_SUPPORT = (
    (WEIGHTED, "a layer, if its weights are a variable: weights quantized, per tensor or per channel"),
    (WEIGHTED - PER_CHANNEL, "weights per tensor only"),
    (BATCH_NORM, "folded into its layer; behind no layer (pre-activation) it becomes one"),
    (BIAS_ADD | ACTIVATION, "behind a layer: quantized with it; in training the fake quant absorbs a ReLU"),
    (OWN_RANGE, "between layers: gets a range of its own"),
    (JOINS, "gets one range for all its inputs"),
    (HANDS_ON_RANGE - JOINS, "has its input's range"),
    (FIXED_RANGE, "needs none: the range of its TFLite kernel is fixed"),
    (
        WEIGHTED_UNSUPPORTED,
        "stays float; the report names it, and all other ops between layers that do. (But a BatchMatMul that "
        "adds stacked features with trained weights, as in BiFPN, becomes products and sums.)",
    ),
)


def table() -> str:
    """Returns the table of ops in docs/supported_ops.md, as Markdown (placement='full')."""
    lines = ["| op | what is done |", "| --- | --- |"]
    for ops, text in _SUPPORT:
        lines.append("| {} | {} |".format(" ".join("`{}`".format(op) for op in sorted(ops)), text))
    return "\n".join(lines)

"""Which op types the rewriter quantises, walks through, or leaves float: exact sets, one home.

The sets of the layer patterns are contrib's (tensorflow/contrib/quantize/python/quantize.py, TF 1.15).
"""

import functools
import re

WEIGHTED = frozenset(["Conv2D", "DepthwiseConv2dNative", "MatMul"])
# ... whose weights can have a range for each output channel. Not MatMul: TensorFlow 2.21's converter fails on
# it ("'tfl.transpose' op has mismatched quantized axes").
PER_CHANNEL = frozenset(["Conv2D", "DepthwiseConv2dNative"])
# Ops with weights that no pattern covers; the report names them.
WEIGHTED_UNSUPPORTED = frozenset(
    ["Conv2DBackpropInput", "Conv3D", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"]
)
# TensorFlow 2's tf.cond, and what the value of either's comes from.
BRANCHES = frozenset(["If", "StatelessIf"])
BRANCH_ENDS = BRANCHES | frozenset(["Merge"])
# Ops that run functions, in whose bodies nothing is rewritten: TensorFlow 2's control flow.
CALLS = BRANCHES | frozenset(["PartitionedCall", "StatefulPartitionedCall", "StatelessWhile", "While"])
ADD = frozenset(["Add", "AddV2"])
BIAS_ADD = frozenset(["BiasAdd"]) | ADD
RELU = frozenset(["Relu", "Relu6"])
LEAKY_RELU = frozenset(["LeakyRelu"])
ACTIVATION = RELU | frozenset(["Identity"])
BATCH_NORM = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
# What tf.nn.moments is made of, which an unfused batch norm takes its batch's statistics from.
OF_MOMENTS = frozenset(["Identity", "Mean", "Reshape", "SquaredDifference", "Squeeze", "StopGradient"])
VARIABLE = frozenset(["Variable", "VariableV2", "VarHandleOp"])
# The two that a rewrite makes, and what a model may have of its own beside them.
FAKE_QUANT_PER_TENSOR = "FakeQuantWithMinMaxVars"
FAKE_QUANT_PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"
FAKE_QUANT = frozenset([FAKE_QUANT_PER_TENSOR, FAKE_QUANT_PER_CHANNEL, "FakeQuantWithMinMaxArgs"])
# A range passes through these unchanged when contrib looks for a quantised source of an Add or Mul ...
RANGE_KEEPING = frozenset(["Reshape", "Identity", "BatchToSpaceND", "SpaceToBatchND", "MaxPool", "Max"])
# ... and through these when contrib looks for a fake quant that is there already.
ALREADY_QUANTISED_THROUGH = frozenset(["Reshape", "Identity"])
INTERMEDIATE = ADD | frozenset(["Mul"])
CONCAT = frozenset(["ConcatV2"])
# ... and what else needs one range for all its inputs. (One tensor several times has it: an upsampling.)
JOINS = CONCAT | frozenset(["Pack"])
# placement='full': between layers, the output of these gets a range of its own where no pattern gave it one
OWN_RANGE = (
    RELU
    | LEAKY_RELU
    | INTERMEDIATE
    | frozenset(["Maximum", "Mean", "Minimum", "Neg", "PadV2", "RealDiv", "Sub"])
)
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
# ... of this not its first input's (and of JOINS of several).
DATA_INPUT = {"Split": 1}
# The output range of these TFLite kernels is fixed.
FIXED_RANGE = frozenset(["Sigmoid", "Softmax", "Tanh"])
# What keeps quantised values so, without a range of its own: those of a network's inside too, whose gates'
# products have quantised inputs.
STAYS_QUANTISED = HANDS_ON_RANGE | FIXED_RANGE - frozenset(["Softmax"])
# What these read is not data.
OF_SHAPES = frozenset(["Rank", "Shape", "ShapeN", "Size"])

# What may stand between layers without a range of its own, but for what hands one on.
NEEDS_NO_RANGE = WEIGHTED | WEIGHTED_UNSUPPORTED | FIXED_RANGE | FAKE_QUANT | OF_SHAPES

# A dropout's mask or added noise: random numbers, the ops that make ones and zeros of them or scale them, and
# those that put them onto data.
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
# What only gradients are made of; besides, all whose type ends in Grad, GradV2, ..., and what tf.gradients
# starts from: those of some nets (a softplus, a sum of bias-free layers) hold no op of such a type.
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
    (WEIGHTED, "a layer, where its weights are a variable: weights quantised, per tensor or per channel"),
    (WEIGHTED - PER_CHANNEL, "per tensor only: the converter takes nothing else"),
    (BATCH_NORM, "folded into its layer; behind no layer (pre-activation) one of its own"),
    (BIAS_ADD | ACTIVATION, "behind a layer: quantised with it; its fake quant absorbs a ReLU in training"),
    (OWN_RANGE, "between layers: a range of its own"),
    (JOINS, "one range for all its inputs"),
    (HANDS_ON_RANGE - JOINS, "its input's range"),
    (FIXED_RANGE, "none needed: the range of its TFLite kernel is fixed"),
    (WEIGHTED_UNSUPPORTED, "stays float; the report names it, and what else is between layers"),
)


def table() -> str:
    """The table of ops in docs/supported_ops.md, as Markdown (placement='full')."""
    lines = ["| op | what is done |", "| --- | --- |"]
    for ops, text in _SUPPORT:
        lines.append("| {} | {} |".format(" ".join("`{}`".format(op) for op in sorted(ops)), text))
    return "\n".join(lines)

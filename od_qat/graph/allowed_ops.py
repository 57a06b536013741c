"""Lists the ops that a frozen graph may have, and refuses others: a graph is a program, written by anybody.

These ops compute on tensors, or keep state inside one run (loops, tensor arrays, tables). A list of forbidden
ops would have gaps. Besides the ops that TensorFlow calls stateful (WriteFile, SaveV2, PyFunc, queues, ...),
others read or write files too (ReadFile, MatchingFiles, ImmutableConst, CacheDataset, DebugIdentity, Copy),
call Python (PyFuncStateless) or end the process (Abort), and each version of TensorFlow adds some.
"""

from typing import Any, Iterator, List, Tuple

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import ExportError

# The names are those that TensorFlow 1.15 and 2.21 register, grouped by purpose.
ALLOWED = frozenset(
    """
    Const Placeholder PlaceholderV2 PlaceholderWithDefault Identity IdentityN NoOp StopGradient Snapshot
    EnsureShape GuaranteeConst CheckNumerics CheckNumericsV2 Assert Print ControlTrigger PreventGradient

    Add AddN AddV2 AccumulateNV2 Sub Mul MulNoNan Div DivNoNan RealDiv FloorDiv FloorMod Mod TruncateDiv
    TruncateMod Neg Abs Sign Square SquaredDifference Sqrt Rsqrt Reciprocal Inv Exp Expm1 Log Log1p Pow
    Xdivy Xlogy Xlog1py Erf Erfc Erfinv Ndtri Lgamma Digamma Igamma Igammac Betainc Zeta Polygamma Sin Cos
    Tan Asin Acos Atan Atan2 Sinh Cosh Tanh Asinh Acosh Atanh Floor Ceil Round Rint Maximum Minimum
    ClipByValue Cumsum Cumprod CumulativeLogsumexp Sum Prod Mean Max Min All Any ArgMax ArgMin EuclideanNorm
    Equal NotEqual Greater GreaterEqual Less LessEqual ApproximateEqual LogicalAnd LogicalOr LogicalNot
    IsFinite IsInf IsNan NextAfter Cast Bitcast Bucketize Bincount DenseBincount HistogramFixedWidth
    BitwiseAnd BitwiseOr BitwiseXor Invert LeftShift RightShift PopulationCount Complex ComplexAbs Real Imag
    Conj Angle Cross

    MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum MatrixBandPart MatrixDeterminant MatrixDiag
    MatrixDiagV2 MatrixDiagV3 MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixSetDiag MatrixSetDiagV2
    MatrixSetDiagV3 MatrixInverse MatrixSolve MatrixTriangularSolve Cholesky Qr Svd SelfAdjointEigV2 Diag
    DiagPart SparseToDense SparseTensorDenseMatMul SparseMatMul FFT FFT2D IFFT IFFT2D RFFT RFFT2D IRFFT
    IRFFT2D

    Reshape Squeeze ExpandDims Shape ShapeN Size Rank Range LinSpace Fill ZerosLike OnesLike Pack Unpack
    ParallelConcat Concat ConcatV2 ConcatOffset Split SplitV Slice StridedSlice Tile BroadcastTo
    BroadcastArgs BroadcastGradientArgs Transpose ConjugateTranspose InvertPermutation Reverse ReverseV2
    ReverseSequence Roll Pad PadV2 MirrorPad Gather GatherV2 GatherNd ScatterNd ScatterNdNonAliasingAdd
    TensorScatterAdd TensorScatterSub TensorScatterUpdate TensorScatterMax TensorScatterMin DynamicPartition
    DynamicStitch ParallelDynamicStitch Where Select SelectV2 OneHot TopK TopKV2 ApproxTopK NthElement
    Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 ListDiff LowerBound UpperBound UnravelIndex
    SegmentSum SegmentMean SegmentMax SegmentMin SegmentProd UnsortedSegmentSum UnsortedSegmentMax
    UnsortedSegmentMin UnsortedSegmentProd InplaceAdd InplaceSub InplaceUpdate InTopK InTopKV2 SpaceToDepth
    DepthToSpace SpaceToBatch SpaceToBatchND BatchToSpace BatchToSpaceND

    Conv2D Conv Conv3D Conv2DBackpropInput Conv3DBackpropInputV2 DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropInput Dilation2D FusedPadConv2D FusedResizeAndPadConv2D BiasAdd BiasAddV1
    FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 BatchNormWithGlobalNormalization LRN L2Loss Relu Relu6
    LeakyRelu Elu Selu Softplus Softsign Sigmoid Softmax LogSoftmax AvgPool AvgPool3D MaxPool MaxPoolV2
    MaxPool3D MaxPoolWithArgmax FractionalAvgPool FractionalMaxPool DataFormatDimMap DataFormatVecPermute
    LSTMBlockCell GRUBlockCell BlockLSTM BlockLSTMV2


    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel QuantizeV2 Dequantize
    QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
    QuantizeDownAndShrinkRange QuantizedAdd QuantizedAvgPool QuantizedBatchNormWithGlobalNormalization
    QuantizedBiasAdd QuantizedConcat QuantizedConv2D QuantizedDepthwiseConv2D QuantizedInstanceNorm
    QuantizedMatMul QuantizedMaxPool QuantizedMul QuantizedRelu QuantizedRelu6 QuantizedReluX
    QuantizedReshape QuantizedResizeBilinear Requantize RequantizationRange RequantizePerChannel
    RequantizationRangePerChannel

    ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea ScaleAndTranslate CropAndResize
    ExtractGlimpse ExtractImagePatches ExtractJpegShape ImageProjectiveTransformV2
    ImageProjectiveTransformV3 AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation RGBToHSV HSVToRGB
    DrawBoundingBoxes DrawBoundingBoxesV2 NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
    NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps CombinedNonMaxSuppression
    GenerateBoundingBoxProposals DecodeJpeg DecodePng DecodeImage DecodeBmp DecodeGif DecodeAndCropJpeg
    DecodeRaw DecodeBase64 EncodeBase64

    Switch Merge Enter Exit NextIteration LoopCond RefSwitch RefMerge RefEnter RefExit RefNextIteration
    RefIdentity If StatelessIf Case StatelessCase While StatelessWhile For PartitionedCall
    StatefulPartitionedCall MapDefun FakeParam

    TensorArray TensorArrayV2 TensorArrayV3 TensorArrayRead TensorArrayReadV2 TensorArrayReadV3
    TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3 TensorArrayGather TensorArrayGatherV2
    TensorArrayGatherV3 TensorArrayScatter TensorArrayScatterV2 TensorArrayScatterV3 TensorArrayConcat
    TensorArrayConcatV2 TensorArrayConcatV3 TensorArraySplit TensorArraySplitV2 TensorArraySplitV3
    TensorArraySize TensorArraySizeV2 TensorArraySizeV3 TensorArrayPack TensorArrayUnpack TensorArrayClose
    TensorArrayCloseV2 TensorArrayCloseV3 EmptyTensorList TensorListReserve TensorListFromTensor
    TensorListStack TensorListGather TensorListScatter TensorListScatterV2 TensorListScatterIntoExistingList
    TensorListGetItem TensorListSetItem TensorListLength TensorListResize TensorListElementShape
    TensorListPushBack TensorListPushBackBatch TensorListPopBack TensorListConcat TensorListConcatV2
    TensorListConcatLists TensorListSplit Stack StackV2 StackPush StackPushV2 StackPop StackPopV2 StackClose
    StackCloseV2

    HashTable HashTableV2 MutableHashTable MutableHashTableV2 AnonymousHashTable InitializeTable
    InitializeTableV2 LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2 LookupTableImport
    LookupTableImportV2

    RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal RandomShuffle StatelessRandomUniform
    StatelessRandomUniformV2 StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomGetKeyCounter
    StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg StatelessTruncatedNormal
    StatelessTruncatedNormalV2

    AsString StringJoin StringFormat StringLength StringLower StringUpper StringStrip StringSplit
    StringSplitV2 StringToNumber StringToHashBucketFast Substr ReduceJoin RegexReplace RegexFullMatch
    StaticRegexReplace StaticRegexFullMatch
    """.split()
)
# A protobuf holds fewer bytes. A larger constant is stored in a few bytes, but could take all memory.
_LARGEST_CONSTANT = 1 << 31
_NAMED = 3


def require_harmless(graph_def: Any, path: str) -> None:
    """Raises unless every node of a graph, and of its functions, has an allowed op. Runs nothing.

    Args:
      graph_def: tf.GraphDef, not imported yet; TensorFlow need not know its ops.
      path: its file, for the message.

    Raises:
      ExportError: if the graph has another op, or a constant that is too large; the message names ops and
        nodes.
    """
    functions = {function.signature.name for function in graph_def.library.function}
    refused = []  # type: List[Tuple[str, str]]
    for where, node in _nodes(graph_def):
        if node.op not in ALLOWED and (node.op not in functions or _is_an_op(node.op)):
            refused.append((node.op, where))
        elif node.op == "Const":
            _require_small(node, where, path)
    unknown = [op for op, _ in refused if not _is_an_op(op)]
    if unknown:
        raise ExportError(
            "the frozen graph has an op that TensorFlow does not have here",
            where=path,
            found=unknown[0] if unknown[0].isidentifier() else ascii(unknown[0])[:80],
            fix="if it was made for TFLite, score the .tflite made from it; else export it again with "
            "`od-qat export`",
        )
    if refused:
        first = {}  # op -> its first node
        for op, where in refused:
            first.setdefault(op, where)
        named = ["{} ({})".format(op, first[op]) for op in sorted(first)[:_NAMED]]
        more = len(first) - len(named)
        raise ExportError(
            "the frozen graph is not run, as it does more than compute detections",
            where=path,
            found="the op{} {}{}".format(
                "s" if len(first) > 1 else "", ", ".join(named), " and {} more".format(more) if more else ""
            ),
            allowed="ops that only compute on tensors, and do not use files or variables, call Python or "
            "wait for others",
            fix="freeze the model again with `od-qat export`; if somebody gave you the file, ask what the op "
            "is for",
        )


def run_by_importing(graph_def: Any) -> List[str]:
    """Returns the names, sorted, of ops that are not allowed and may run while TensorFlow imports a graph.

    To find shapes, TensorFlow then evaluates ops that depend on constants only, if they are not stateful and
    do not read a variable.
    """
    found = set()
    for _, node in _nodes(graph_def):
        if node.op not in ALLOWED:
            known = compat.op_def(node.op)
            if known and not known.is_stateful and not any(given.is_ref for given in known.input_arg):
                found.add(node.op)
    return sorted(found)


def _nodes(graph_def: Any) -> Iterator[Tuple[str, Any]]:
    for node in graph_def.node:
        yield "node {}".format(_shown(node.name)), node
    for function in graph_def.library.function:
        for node in function.node_def:
            where = "node {} of function {}".format(_shown(node.name), _shown(function.signature.name))
            yield where, node


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 100 else ascii(name)[:100]


def _is_an_op(name: str) -> bool:
    return compat.op_def(name) is not None


def _require_small(node: Any, where: str, path: str) -> None:
    tensor = node.attr["value"].tensor
    elements = 1
    for dimension in tensor.tensor_shape.dim:
        elements *= max(dimension.size, 0)
    try:
        size = tf.as_dtype(tensor.dtype).size or 1
    except TypeError:  # not a type; the import reports it
        return
    if elements * size > _LARGEST_CONSTANT:
        raise ExportError(
            "a constant of the frozen graph is too large",
            where="{}, {}".format(path, where),
            found="{:,} elements of {}".format(elements, tf.as_dtype(tensor.dtype).name),
            allowed="{:,} bytes".format(_LARGEST_CONSTANT),
            fix="the file is damaged: copy or export it again",
        )

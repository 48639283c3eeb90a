"""The operators an artifact may use."""

import onnx

from export.graph import OPSET

CUDA_OPERATORS = frozenset(
    {
        # Pixels in: uint8 NHWC to float NCHW, normalisation of each image.
        *("Cast", "Transpose", "Div", "Sub", "Mul", "ReduceMean", "Pow", "Sqrt", "Clip"),
        # Convolutional and connected layers.
        *("Conv", "Relu", "MaxPool", "AveragePool", "Gemm", "MatMul", "Add"),
        # Attention.
        *("LayerNormalization", "Softmax", "Erf", "Split"),
        # Maxout, its locally connected layer, and slots from lengths.
        *("Max", "Pad", "Log"),
        # Spatial transformers; the grid is a constant times theta, never `AffineGrid`. Rotations are of an angle; the
        # logarithm of thin-plate splines is above.
        *("GridSample", "Sin", "Cos"),
        # Boxes, and the forms of tensors.
        *("Reshape", "Slice", "Gather", "Unsqueeze", "Concat"),
    }
)
"""What the readers need and ONNX Runtime's CUDA provider implements at opset 18 for the types they are used with.

An operator that is left out either has no CUDA kernel (`AffineGrid`, which drags `GridSample` to the CPU with it) or
computes on shapes, which ONNX Runtime does on the CPU (`Shape`, `Size`, `Expand`, `ConstantOfShape`, and the `Concat`
of what they give): one such node and a session that insists on CUDA refuses the file. Before adding one, see that
a strict CUDA session takes a graph with it.
"""


def foreign_operators(model: onnx.ModelProto) -> list[str]:
    """Whatever in `model` is not an operator of the list at opset 18, each named once; empty when all are."""
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    foreign = [f"opset {domain} {version}" for domain, version in versions.items() if (domain, version) != _DOMAIN]
    foreign += [f"function {function.name}" for function in model.functions]
    used = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node}
    return foreign + sorted(used - CUDA_OPERATORS)


_DOMAIN = ("ai.onnx", OPSET)

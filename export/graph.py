"""The ONNX graph of a reader: traced, and stripped until the same weights give the same bytes."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from models.served import ServedReader
from service.artifact import INPUT_NAME

OPSET = 18
"""18 and 19 put every node of a reader on CUDA in ONNX Runtime 1.24 to 1.31. From 20 on `GridSample` needs 1.25 and
TensorRT reads its renamed mode `linear` as nearest; from 22 on `MaxPool` falls back to the CPU."""

BATCH = "N"
"""Name of the one dynamic dimension."""

PRODUCER = "housenumber"


def trace(reader: ServedReader, height: int, width: int) -> onnx.ModelProto:
    """The graph of `reader` with weights inside, for uint8 images `[N, height, width, 3]` and any N.

    Nothing in it depends on the time, the machine's paths or the process: the exporter's notes (stack traces,
    names of modules) are taken out, so the same weights give the same bytes.
    """
    # Two images: a batch of one would be taken for a constant dimension.
    images = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            reader.eval(),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"images": {0: torch.export.Dim(BATCH)}},
            input_names=[INPUT_NAME],
            output_names=reader.output_names,
            verbose=False,
        )
    assert program is not None
    return _stripped(program.model_proto)


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the exporter's notes, in place."""
    graph = model.graph
    model.producer_name, model.producer_version = PRODUCER, ""
    graph.name = "reader"
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (missing torchvision, its own deprecations) from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

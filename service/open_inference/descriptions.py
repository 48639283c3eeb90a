"""What the protocol tells about the service and its model: metadata, configuration, statistics."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from service.engine import CUDA
from service.open_inference.schemas import (
    BatchStats,
    DurationStat,
    InferenceStats,
    ModelMetadata,
    ModelStats,
    ServerMetadata,
    TensorMetadata,
)
from service.open_inference.tensors import input_tensors, output_tensors
from service.predictor import Predictor
from service.settings import Settings

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ["binary_tensor_data", "parameters", "schedule_policy", "model_configuration", "statistics"]
REPOSITORY_EXTENSION = "model_repository"

_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
_NOTHING = DurationStat(count=0, ns=0)


def server_metadata(provider: str | None, *, with_repository: bool) -> ServerMetadata:
    return ServerMetadata(
        name="housenumber",
        version=version("housenumber"),
        extensions=[*EXTENSIONS, *([REPOSITORY_EXTENSION] if with_repository else [])],
        provider=provider,
    )


def model_metadata(predictor: Predictor) -> ModelMetadata:
    return ModelMetadata(
        name=predictor.model.name,
        versions=[predictor.model.version],
        platform=PLATFORM,
        inputs=input_tensors(predictor.metadata),
        outputs=output_tensors(predictor.metadata),
    )


def model_config(predictor: Predictor, settings: Settings, *, pinned: bool) -> dict[str, Any]:
    """The model's configuration as Triton writes it (`model_config.proto`).

    Triton's `max_batch_size` stands for a first dimension that all tensors have and `dims` leave out, and `dims` may
    not be empty; a tensor of shape [N] cannot be said so. Hence 0, which means that `dims` are the whole shape. How
    many images the model is really given at once is one of the `parameters`. `pinned`: this version is not served for
    being the newest.
    """
    model = predictor.model
    version_policy = {"specific": {"versions": [int(model.version)]}} if pinned else {"latest": {"num_versions": 1}}
    queue_policy = {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": settings.request_timeout_ms * 1000,
        "allow_timeout_override": True,
        "max_queue_size": settings.max_queue_images,
    }
    parameters = {
        "max_batch_size": settings.max_batch_size,
        "max_images": settings.max_images,
        "sha256": model.sha256,
        "provider": model.provider,
    }
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": version_policy,
        "max_batch_size": 0,
        # Either of the two is enough.
        "input": [_tensor_config(tensor) | {"optional": True} for tensor in input_tensors(predictor.metadata)],
        "output": [_tensor_config(tensor) for tensor in output_tensors(predictor.metadata)],
        "dynamic_batching": {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(settings.max_batch_delay_ms * 1000),
            "preserve_ordering": False,
            "default_queue_policy": queue_policy,
        },
        "instance_group": [
            {
                "name": model.name,
                "kind": "KIND_GPU" if model.provider == CUDA else "KIND_CPU",
                "count": predictor.parallel_batches,
            }
        ],
        "default_model_filename": "model.onnx",
        "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
    }


def model_stats(predictor: Predictor) -> ModelStats:
    statistics = predictor.statistics
    batches = statistics.batches
    return ModelStats(
        name=predictor.model.name,
        version=predictor.model.version,
        last_inference=statistics.last_inference_ms,
        inference_count=sum(size * runs.count for size, runs in batches.items()),
        execution_count=sum(runs.count for runs in batches.values()),
        inference_stats=InferenceStats(
            **{
                name: DurationStat.model_validate(getattr(statistics, name))
                for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
            },
            cache_hit=_NOTHING,
            cache_miss=_NOTHING,
        ),
        batch_stats=[
            BatchStats(
                batch_size=size,
                # Stacking the images of a batch and splitting its outputs are not measured apart.
                compute_input=DurationStat(count=runs.count, ns=0),
                compute_infer=DurationStat.model_validate(runs),
                compute_output=DurationStat(count=runs.count, ns=0),
            )
            for size, runs in batches.items()
        ],
    )


def _tensor_config(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": _CONFIG_TYPES[tensor.datatype], "dims": tensor.shape}

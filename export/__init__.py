"""From a checkpoint to the artifact: trace, describe, verify (torch and onnx)."""

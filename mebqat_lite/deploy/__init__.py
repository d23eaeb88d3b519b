"""From a checkpoint to a file: integers of exactly b bits, or ONNX."""

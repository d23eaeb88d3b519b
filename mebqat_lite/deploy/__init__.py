"""Write networks to files for use: weights as integers of exactly b bits each, or ONNX."""

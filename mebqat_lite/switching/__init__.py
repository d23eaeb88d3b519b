"""Run any module at any bitwidth: the quantized layers, the setting that they share, and how a model gets both."""

"""Measure speed as ratios: this package and plain PyTorch alternate in one run on the same machine."""

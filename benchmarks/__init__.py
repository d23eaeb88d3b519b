"""Speed as ratios, each measured in one run against plain PyTorch on the same machine, interleaved."""

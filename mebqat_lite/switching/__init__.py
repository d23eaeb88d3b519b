"""Any module at any bitwidth: the layers, the setting that they share, and how a model gets both."""

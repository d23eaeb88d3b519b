"""Measure trained networks: accuracy at every bitwidth, few-shot episodes, costs, tables and figures."""

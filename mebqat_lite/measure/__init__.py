"""Measuring: accuracy at every bitwidth, episodes, costs, tables and figures."""

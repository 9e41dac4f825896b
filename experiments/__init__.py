"""Sweeps over configs: they reach vivit by its command line and its files."""

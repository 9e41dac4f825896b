"""Prepared video in, batches of uint8 clips out. Never imports a model."""

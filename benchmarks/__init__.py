"""Measurements of pyckpt against the other ways to write a checkpoint."""

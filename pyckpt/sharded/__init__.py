"""Sharded checkpoints: the storage under torch.distributed.checkpoint."""

"""Checkpoints of CompressAI become models of ours."""

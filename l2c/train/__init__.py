"""Training: data, losses, and the stages, each of which starts from the checkpoint of the one before."""

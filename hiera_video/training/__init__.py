"""The training loop, its tasks (losses), optimizer, plan and checkpoints."""

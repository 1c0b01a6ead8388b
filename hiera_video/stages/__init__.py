"""What a run does: train, test, features; its folder, inputs, report, dry run and SLURM job."""

"""What every other room stands on: errors, files, locks, signals, log, memory, ranks, devices."""

"""The evaluation loop, and what becomes of its outputs: scores, features, probes."""

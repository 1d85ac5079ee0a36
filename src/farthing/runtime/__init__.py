"""What this machine can do and how torch is set up on it: devices, probes, seeds, processes."""

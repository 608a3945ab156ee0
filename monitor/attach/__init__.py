"""Programs attached and calibrated: what this kernel does, found out by trying it."""

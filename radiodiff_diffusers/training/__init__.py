"""Training: losses, data, and a run that cannot be lost. The recipes in `examples/` put them together."""

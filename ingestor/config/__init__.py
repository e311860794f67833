"""What the operator told us: YAML and environment, as one frozen Config."""

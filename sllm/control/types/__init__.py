"""What is asked of the control plane and told by it, as plain records."""

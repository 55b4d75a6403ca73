"""What the control plane and other nodes call, and what this node reports."""

"""What kernels run on: device memory, what is there, and who has room on it."""

"""What `bench.migration` measures, and how."""

"""Where a request is served: pure functions of one snapshot."""

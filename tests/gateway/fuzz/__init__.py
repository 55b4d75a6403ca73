"""Whatever may come over HTTP, sent to a gateway of a real cluster; `make fuzz-http` runs it."""

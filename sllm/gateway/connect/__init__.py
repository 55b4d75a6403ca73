"""The protocol over HTTP/1.1: Connect (JSON and protobuf) and gRPC-Web, passed on over gRPC."""

"""What others call: one servicer for each service of the protocol, named as its .proto."""

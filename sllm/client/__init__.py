"""The client SDK: the cluster from a program."""

"""The tier store: brings checkpoints up, keeps them there, and tells what is where."""

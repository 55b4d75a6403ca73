"""The format: manifest, tensors' places, dtypes, and the header of safetensors."""

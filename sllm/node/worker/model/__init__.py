"""The model: configuration, tokenizer, text, and the module over its weights."""

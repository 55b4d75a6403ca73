"""The peer: a fresh Python process that loads a model with transformers and makes one token.

`python fresh_process.py DIRECTORY PROMPT` prints the token's id.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(directory: str, prompt: str) -> None:
    """What a script that serves one request does."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    print(int(output[0, -1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

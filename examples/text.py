"""English text, a tokenizer and a chat template for the example models.

The text is the language reference that every CPython carries, so nothing is downloaded.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
SHORTEST_PARAGRAPH = 5
"""In words: shorter ones are headings of notes and marks of versions."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

_HEADING = re.compile(r"^(\S.*)\n([*=~-])\2+\n", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.:;]\)?\s*(\[\d+\])?$")
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Section:
    """The prose of a titled part of the reference, without its code and tables."""

    title: str
    paragraphs: tuple[str, ...]


def read_sections() -> list[Section]:
    """Return the sections of the reference, each once, in alphabetical order of topics."""
    sections: dict[Section, None] = {}
    for topic in sorted(topics):
        _, *parts = _HEADING.split(topics[topic])
        for title, body in zip(parts[::3], parts[2::3], strict=True):
            sections[Section(_mark_code(title), _split_prose(body))] = None
    return [section for section in sections if section.paragraphs]


def train_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of so many tokens; it can represent any UTF-8 text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_train_bpe(vocabulary, _paragraphs()),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=ROLES,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids of the special tokens under the names that configurations use."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _train_bpe(vocabulary: int, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, _trainer(vocabulary))
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return tokenizer


def _trainer(vocabulary: int) -> BpeTrainer:
    return BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _paragraphs() -> Iterable[str]:
    return (paragraph for section in read_sections() for paragraph in section.paragraphs)


def _split_prose(body: str) -> tuple[str, ...]:
    """Return the paragraphs and list items of a text, one line each."""
    blocks = (block.strip("\n") for block in body.split("\n\n"))
    return tuple(_mark_code(" ".join(block.split())) for block in blocks if _is_prose(block))


def _is_prose(block: str) -> bool:
    """Tell paragraphs and list items, which end like sentences, from code and tables."""
    following = block.splitlines()[1:]
    indents = {len(line) - len(line.lstrip()) for line in following}
    is_sentence = len(block.split()) >= SHORTEST_PARAGRAPH and _SENTENCE_END.search(block)
    return len(indents) <= 1 and bool(is_sentence)


def _mark_code(text: str) -> str:
    """Put inline code between backticks; the reference has it between double quotes."""
    return _QUOTED.sub(r"`\1`", text)

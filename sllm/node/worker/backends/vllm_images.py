"""Images as vLLM's models take them: pixels in their form, and their places in the prompt."""

import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Final

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import (
    BaseMultiModalProcessor,
    MultiModalProcessingResult,
)

from sllm.chat.images import MAX_IMAGES, Image, decoded
from sllm.errors import ContextExceeded, InvalidImage, InvalidPrompt
from sllm.node.worker.engine.vllm.config import SEEING, step_places
from sllm.node.worker.model.description import context_tokens
from sllm.node.worker.model.image_memory import ImageMemory, LargestImage, image_memory
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.refusing import refusing, sentence
from sllm.node.worker.model.seeing import SeenPrompt

_IMAGE: Final = "image"


class VllmImages:
    """See `ImageReader`. Used in one thread at a time: tokenizers take no two at once."""

    def __init__(self, files: ModelFiles, dtype: str) -> None:
        """Makes what a model's files say of images.

        Args:
            files: the model's.
            dtype: name of the torch dtype in which the model is run.

        Raises:
            UnsupportedModel: They cannot be used.
        """
        with refusing("what the model's files say of images cannot be used"):
            arguments = EngineArgs(model=str(files.directory), dtype=dtype, **SEEING)
            config = arguments.create_model_config()
            # Of its own, since another thread makes tokens of texts meanwhile.
            self._processor = MULTIMODAL_REGISTRY.create_processor(
                config, tokenizer=deepcopy(files.tokenizer)
            )
            self._context = context_tokens(files.architecture.config)
            self.memory = self._memory(files.architecture.config, getattr(torch, dtype))
        self._turn = threading.Lock()

    @property
    def _one_by_one(self) -> bool:
        """Whether what is made of an image does not depend on those beside it.

        VLLM's processors of models where it does keep nothing of theirs for other requests.
        """
        usual = BaseMultiModalProcessor._cached_apply_hf_processor
        return type(self._processor)._cached_apply_hf_processor is usual

    def _memory(self, config: Any, dtype: torch.dtype) -> ImageMemory:
        made = self._processor.get_dummy_mm_inputs({_IMAGE: 1})
        (item,), (place,) = made["mm_kwargs"][_IMAGE], made["mm_placeholders"][_IMAGE]
        tensors = list(_tensors(item.get_data()))
        largest = LargestImage(
            nbytes=sum(one.nbytes for one in tensors),
            numbers=max(one.numel() for one in tensors),
            places=max(1, place.get_num_embeds()),
            side_by_side=1 if self._one_by_one else MAX_IMAGES,
        )
        return image_memory(config, dtype, largest, step_places(), self._context)

    def read(
        self, token_ids: Sequence[int], images: Sequence[Image], *, placed: bool
    ) -> SeenPrompt:
        """See `ImageReader.read`."""
        with self._turn:
            try:
                return self._seen(list(token_ids), images, placed=placed)
            except (InvalidImage, ContextExceeded):
                raise
            except Exception as error:  # vLLM's processors find fault in many ways
                raise InvalidPrompt(
                    f"the prompt and its {len(images)} images do not belong together: "
                    f"{sentence(error)}"
                ) from error

    def _seen(self, token_ids: list[int], images: Sequence[Image], *, placed: bool) -> SeenPrompt:
        processor, made = self._processor, self._made(token_ids, images)
        if placed:
            places = processor._find_mm_placeholders(token_ids, made.prompt_updates)
        else:
            token_ids, places = processor._apply_prompt_updates(
                made.prompt_ids, made.prompt_updates
            )
        processor._validate_mm_placeholders(places, {_IMAGE: len(images)})
        specs = [
            MultiModalFeatureSpec(
                data=made.kwargs[_IMAGE][number],
                modality=_IMAGE,
                identifier=made.hashes[_IMAGE][number],
                mm_position=place.to_range(),
                mm_hash=made.hashes[_IMAGE][number],
            )
            for number, place in enumerate(places[_IMAGE])
        ]
        nbytes = sum(one.nbytes for spec in specs for one in _tensors(spec.data.get_data()))
        return SeenPrompt(tuple(token_ids), tuple(specs), nbytes)

    def _made(self, token_ids: list[int], images: Sequence[Image]) -> MultiModalProcessingResult:
        """What the model's processor makes of images, as few of which as can be are decoded."""
        whole = MultiModalProcessingResult(token_ids, {_IMAGE: []}, {_IMAGE: []}, {_IMAGE: []})
        places = 0
        for pictures in self._side_by_side(images):
            items = self._processor.info.parse_mm_data({_IMAGE: pictures})
            made = self._processor._cached_apply_hf_processor(
                ProcessorInputs(token_ids, items), TimingContext(enabled=False)
            )
            places += self._add(whole, made)
            if places > self._context:
                raise ContextExceeded(
                    f"the images are seen in more tokens than the context of {self._context} has: "
                    "show fewer of them"
                )
        return whole._replace(prompt_ids=made.prompt_ids)

    def _side_by_side(self, images: Sequence[Image]) -> Iterator[list[Any]]:
        if not self._one_by_one:
            yield list(decoded(images))
            return
        for picture in decoded(images):
            yield [picture]

    def _add(self, whole: MultiModalProcessingResult, made: MultiModalProcessingResult) -> int:
        """Puts images behind others; gives the tokens that they are seen as."""
        before = len(whole.kwargs[_IMAGE])
        updates = [
            [self._processor._recompute_cached_prompt_update(one, number) for one in of_image]
            for number, of_image in enumerate(made.prompt_updates[_IMAGE], before)
        ]
        whole.kwargs[_IMAGE].extend(made.kwargs[_IMAGE])
        whole.hashes[_IMAGE].extend(made.hashes[_IMAGE])
        whole.prompt_updates[_IMAGE].extend(updates)
        return sum(len(of_image[0].content.full) for of_image in updates)


def _tensors(data: Any) -> Iterator[torch.Tensor]:
    """All that are somewhere in an item's data."""
    match data:
        case torch.Tensor():
            yield data
        case dict():
            for one in data.values():
                yield from _tensors(one)
        case list() | tuple():
            for one in data:
                yield from _tensors(one)

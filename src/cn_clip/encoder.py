"""Encoder: pictures and sentences in, unit vectors out, in input order.

    encoder = Encoder.load("ViT-B-16")
    images = encoder.encode_images(["cat.jpg", open("dog.png", "rb").read(), a_pil_image])
    texts = encoder.encode_texts(["一只猫", "一只狗"])
    similarity = texts @ images.T

Of any number of them in constant memory: `image_vectors`, `text_vectors` (streams.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np

from cn_clip.backends import load_backend
from cn_clip.backends.torch import TorchBackend
from cn_clip.batching import batched, split_texts
from cn_clip.errors import UserError
from cn_clip.inputs import Encoded, ImageInput, Vectors, check_text, several
from cn_clip.models.clip import CLIP
from cn_clip.scores import Classification, Template, classify, fuse, label_sentences, similarity, unit
from cn_clip.streams import OnError, Streams, checked
from cn_clip.tokenizer import TokenBatch

LONG_TEXTS = 1024  # long texts whose windows are computed together


class Encoder(Streams):
    """A model in eval mode, ready to encode; threads may share one, and a forked process may go on with it.

    Attributes:
        backend: what computes the features.
        size: pixels of the square image input.
        width: numbers in a vector.
        device: where the model runs.
        precision: what it computes in: fp32, bf16 or fp16.
    """

    @classmethod
    def load(
        cls,
        name_or_path: str,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        download_root: str | None = None,
        workers: int | None = None,
        fast_decode: bool = False,
        **names: Any,
    ) -> Encoder:
        """Load a published model by name, or a checkpoint by path.

        Args:
            name_or_path: as in `cn_clip.clip.load_from_name`.
            backend: auto, or torch.
            device: auto (a GPU where there is one), or a torch device.
            precision: fp32, bf16, fp16, or auto: bf16 where the processor computes it itself, else fp32.
            download_root: where published weights are kept.
            workers: decoding threads.
            fast_decode: decode JPEGs at a smaller scale, two to three times as fast; not quite the same vectors.
            **names: `vision_model_name`, `text_model_name`, `input_resolution`, `use_modelscope` of
                `load_from_name`.

        Raises:
            UserError: no such model, backend, device or precision, or a file that does not hold its weights.
        """
        loaded = load_backend(backend, name_or_path, device, precision, download_root=download_root, **names)
        return cls(loaded, workers=workers, fast_decode=fast_decode)

    similarity = staticmethod(similarity)

    @property
    def model(self) -> CLIP:
        """The two towers.

        Raises:
            UserError: they run in another backend than torch.
        """
        if not isinstance(self.backend, TorchBackend):
            raise UserError(f"backend {self.backend.name} has no torch model; load it with backend='torch'")
        return self.backend.model

    @overload
    def encode_images(
        self, images: Iterable[ImageInput], batch_size: int = 32, on_error: Literal["raise"] = "raise"
    ) -> Vectors: ...
    @overload
    def encode_images(
        self, images: Iterable[ImageInput], batch_size: int = 32, *, on_error: Literal["skip"]
    ) -> Encoded: ...
    def encode_images(
        self, images: Iterable[ImageInput], batch_size: int = 32, on_error: OnError = "raise"
    ) -> Vectors | Encoded:
        """Unit vectors float32 [N, width] of pictures, in any mixture.

        Args:
            images: paths, encoded bytes, open files, PIL pictures of any mode, or uint8 arrays [H, W, 3] (RGB;
                or [H, W], 1 or 4 channels). One picture alone is a list of one.
            batch_size: pictures computed at a time.
            on_error: raise, or skip: then the result is an `Encoded`: the good pictures' vectors, which pictures
                they are, and what is wrong with the others.

        Raises:
            BadItem: a picture cannot be decoded; the line has its index.
        """
        batches = list(self.image_batches(images, batch_size, on_error))
        return self._joined(batches, on_error)

    @overload
    def encode_texts(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        context_length: int | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> Vectors: ...
    @overload
    def encode_texts(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        context_length: int | None = None,
        *,
        on_error: Literal["skip"],
    ) -> Encoded: ...
    def encode_texts(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        context_length: int | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | Encoded:
        """Unit vectors float32 [N, width] of texts; of one longer than `context_length`, its beginning.

        Args:
            texts: strings. One text alone is a list of one.
            batch_size: texts of `context_length` pieces that fit into a batch; of short ones, more do.
            context_length: word pieces kept of a text, [CLS] and [SEP] included; 52, or what the tower takes. A
                text that is cut is warned of.
            on_error: raise, or skip what is not a string: then the result is an `Encoded`.

        Raises:
            BadItem: an item is not a string; the line has its index.
            UserError: the tower takes no texts of that length.
        """
        batches, cut, first = [], 0, 0
        for encoded, tokens in self.text_batches(texts, batch_size, context_length, on_error):
            batches.append(encoded)
            if tokens.truncated.any():
                first = first if cut else int(encoded.indices[tokens.truncated.argmax()])
                cut += int(tokens.truncated.sum())
        if cut:
            length = self.context(context_length)
            warnings.warn(
                f"{cut} texts are longer than {length} word pieces and were cut (first: text {first}); "
                "encode_long_texts reads all of them",
                stacklevel=2,
            )
        return self._joined(batches, on_error)

    def encode_long_texts(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        context_length: int | None = None,
        stride: int | None = None,
    ) -> Vectors:
        """Unit vectors float32 [N, width] of texts of any length, read whole.

        A text longer than the context is read in windows that overlap; its vector is the mean of their unit
        vectors, normalised. The last window ends with the text, so that all are of one length and count alike.

        Args:
            texts: strings. One text alone is a list of one.
            batch_size: windows computed at a time.
            context_length: word pieces of a window, [CLS] and [SEP] included; 52, or what the tower takes.
            stride: pieces from the start of a window to that of the next; half a window if None.

        Raises:
            BadItem: an item is not a string; the line has its index.
            UserError: a context length or stride that cannot be.
        """
        self.survive_fork()
        length = self.context(context_length)
        step = max(1, (length - 2) // 2) if stride is None else stride
        if length < 3 or not 0 < step <= length - 2:
            raise UserError(f"stride {step} of windows of {length - 2} word pieces: expected 1 to {length - 2}")
        found = [np.empty((0, self.width), np.float32)]
        for window in batched(enumerate(several(texts)), LONG_TEXTS):
            list(checked((error for item in window if (error := check_text(*item))), "raise"))
            pieces = [self.tokenizer.encode([text], None).ids[0] for _, text in window]
            ids, lengths, owners = split_texts(pieces, length, step)
            tokens = TokenBatch(ids, lengths, np.zeros(len(ids), dtype=np.bool_))
            sums = np.zeros((len(pieces), self.width), np.float32)
            np.add.at(sums, owners, self.encode_ids(tokens, batch_size * length))
            found.append(unit(sums))
        return np.concatenate(found)

    def encode_queries(
        self,
        images: Sequence[ImageInput | None],
        texts: Sequence[str | None],
        image_weight: float = 0.5,
    ) -> Vectors:
        """Unit vectors float32 [N, width] of queries that are a picture and a text: "this, but in red".

        The vector is `image_weight` of the picture's unit vector and the rest of the text's, normalised. None in
        place of one of the two leaves the other's vector.

        Raises:
            UserError: other numbers of pictures than of texts, a query of neither, or a weight outside [0, 1].
            BadItem: see `encode_images` and `encode_texts`; indices count the pictures, or texts, that are given.
        """
        pictures, sentences = list(images), list(texts)
        with_image = [i for i, image in enumerate(pictures) if image is not None]
        with_text = [i for i, text in enumerate(sentences) if text is not None]
        vectors = self.encode_images([image for image in pictures if image is not None])
        others = self.encode_texts([text for text in sentences if text is not None])
        if len(pictures) != len(sentences):
            raise UserError(f"{len(pictures)} pictures for {len(sentences)} texts: one of each a query, or None")
        return fuse(len(pictures), (with_image, vectors), (with_text, others), image_weight)

    def label_vectors(self, labels: Sequence[str], templates: Sequence[Template] | None = None) -> Vectors:
        """Unit vectors float32 [C, width] of labels: each the mean of its sentences' unit vectors, normalised.

        `templates` are sentences with {} in the label's place, or functions of the label; None is the label alone.

        Raises:
            UserError: no labels, or a template without {}.
        """
        count, sentences = label_sentences(labels, templates)
        sums = np.zeros((len(labels), self.width), np.float32)
        done = 0
        for vectors, _ in self.text_vectors(sentences):
            np.add.at(sums, np.arange(done, done + len(vectors)) // count, vectors)
            done += len(vectors)
        return unit(sums)

    def classify(
        self,
        images: Iterable[ImageInput] | Vectors,
        labels: Sequence[str],
        templates: Sequence[Template] | None = None,
    ) -> Classification:
        """How likely each label is for each picture, zero-shot.

        Args:
            images: pictures as in `encode_images`, or their float32 [N, width] vectors.
            labels: C names of classes.
            templates: as in `label_vectors`.

        Raises:
            BadItem: see `encode_images`.
            UserError: see `label_vectors`.
        """
        known = isinstance(images, np.ndarray) and images.dtype == np.float32 and images.ndim == 2
        classes = self.label_vectors(labels, templates)
        vectors: Any = images if known else self.encode_images(images)
        return classify(vectors, classes, list(labels), self.backend.logit_scale)

    def _joined(self, batches: list[Encoded], on_error: OnError) -> Vectors | Encoded:
        vectors = np.concatenate([np.empty((0, self.width), np.float32), *(b.vectors for b in batches)])
        if on_error == "raise":
            return vectors
        indices = np.concatenate([np.empty(0, np.int64), *(b.indices for b in batches)])
        return Encoded(vectors, indices, [error for b in batches for error in b.errors])

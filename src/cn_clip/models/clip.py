"""CLIP: an image tower and a text tower into one space (Radford et al. 2021; Yang et al. 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cn_clip.config import ModelConfig
from cn_clip.models.bert import Bert
from cn_clip.models.resnet import ModifiedResNet
from cn_clip.models.vit import VisionTransformer

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5: logits are never scaled by more than 100


class CLIP(nn.Module):
    """Both towers; built from a `ModelConfig`, randomly initialised, in float32 and training mode.

    Attributes:
        config: the architecture.
        visual, bert, text_projection, logit_scale: the published names of the parameters.
        text_pooler, text_projection_bias: None but in architectures that say so, which no published one does.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, embed_dim = config.text.text_hidden_size, config.vision.embed_dim
        # Parameters in the order of the published checkpoints: optimizer states go by position.
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        tower = ModifiedResNet if config.vision.is_resnet else VisionTransformer
        self.visual: ModifiedResNet | VisionTransformer = tower(config.vision)
        self.bert = Bert(config.text)
        self.text_pooler = nn.Linear(width, width) if config.text.text_pooler else None
        bias = nn.Parameter(torch.zeros(embed_dim)) if config.text.text_projection_bias else None
        self.register_parameter("text_projection_bias", bias)
        if not self.logit_scale.is_meta:
            self.initialise()

    def initialise(self) -> None:
        """Draw all weights from torch's generator."""
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))
        nn.init.normal_(self.text_projection, std=self.config.text.text_hidden_size**-0.5)
        if self.text_pooler is not None:
            nn.init.normal_(self.text_pooler.weight, std=self.config.text.text_initializer_range)
            nn.init.zeros_(self.text_pooler.bias)
        self.visual.initialise()
        self.bert.initialise(self.config.text.text_initializer_range)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.visual.conv1.weight.dtype

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: activations inside blocks are computed again when needed."""
        self.visual.set_grad_checkpointing(enable)
        self.bert.set_grad_checkpointing(enable)

    def encode_image(self, image: Tensor, mask_ratio: float = 0) -> Tensor:
        """image: float [N, 3, R, R], preprocessed -> features [N, embed_dim], not normalised.

        `mask_ratio` of a ViT's patches are left out at random (FLIP; training only); a ResNet ignores it.
        """
        return self.visual(image.to(self.dtype), mask_ratio)

    def encode_text(self, text: Tensor) -> Tensor:
        """text: int64 [N, L] from `tokenize`, padded with 0 -> features [N, embed_dim], not normalised."""
        cls = self.bert(text)
        if self.text_pooler is not None:
            cls = torch.tanh(self.text_pooler(cls))
        features = cls @ self.text_projection
        return features if self.text_projection_bias is None else features + self.text_projection_bias

    def forward(
        self, image: Tensor | None, text: Tensor | None, mask_ratio: float = 0
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Both given: unit image features, unit text features, and the factor of the logits (exp of
        `logit_scale`). One given, the other None: that one's features, not normalised.

        Raises:
            ValueError: both are None.
        """
        if image is None:
            if text is None:
                raise ValueError("image and text cannot both be None")
            return self.encode_text(text)
        if text is None:
            return self.encode_image(image, mask_ratio)
        image_features = F.normalize(self.encode_image(image, mask_ratio), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        return image_features, text_features, self.logit_scale.exp()

    def get_similarity(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities times the learnt factor: logits per image [N, M], and per text [M, N]."""
        image_features, text_features, scale = self(image, text)
        logits_per_image = scale * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()

"""The robust activation map of Prakash et al., CVPR 2018, from a user's net."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_robust import seeds as streams
from lightning_robust.errors import InputError
from lightning_robust.functional.activation_map import (
    MapNormalization,
    Weighting,
    check_map_options,
    robust_activation_map,
)
from lightning_robust.images import check_unit_batch
from lightning_robust.nn.features import class_weights, observe, spatial_features

MapWeights: TypeAlias = Literal["cam", "gradcam"]

_TELLING_ROWS = 16


class RobustActivationMap(nn.Module):
    """Where a net sees the objects of its most probable classes: call it with images for maps in [0, 1].

    The map comes from one run of the net in evaluation mode, in float32 and without autocast; modes, gradients and the
    random state of the net are as before afterwards. The map carries no gradient. An image that stands in the batch
    several times, as where a defense draws ten times, goes through the net once.

    The last map of features and the linear head are found by themselves where the average (or maximum) of the map over
    pixels goes into one linear layer or 1x1 convolution, or where a 1x1 convolution of the map is averaged. For other
    heads there is Grad-CAM (Selvaraju et al., ICCV 2017), whose weights are the mean gradients of a logit in the map;
    behind average pooling and a linear layer it gives the same map, at the cost of a backward pass.

    Args:
        model: net from [0, 1] images (it normalizes inside) to logits of shape (B, number of classes); None waits for
            :meth:`bind`. A net given here stays: this is how the map is taken from another net than the attacked one,
            as the paper does with one that was trained on ImageNet. It is no submodule of the map. Where it is on
            another device than the images, they are taken there.
        classes: how many of the most probable classes are mixed.
        decay: factor from one rank to the next.
        layer: name of the module whose output is the map of features, for example ``"layer4"``; None finds it.
        head: name of the linear layer or 1x1 convolution; None finds it.
        weights: ``cam``, the head's weights, or ``gradcam``.
        weighting: as for :func:`~lightning_robust.functional.robust_activation_map`, like the next.
        normalize: see there.

    Args (of the call):
        image: in [0, 1], shape (B, C, H, W); the maps have the shape (B, H, W).
        classes: how many classes are mixed this time, instead of the above: 1 is the map of the top class, to look at
            beside the robust one.

    Raises:
        InputError: for an unknown option or a model that is no module.

    Example:
        >>> from lightning_robust.models import SmallCNN
        >>> RobustActivationMap(SmallCNN(3))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 32, 32])
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        classes: int = 5,
        decay: float = 0.5,
        layer: str | None = None,
        head: str | None = None,
        weights: MapWeights = "cam",
        weighting: Weighting = "paper",
        normalize: MapNormalization | None = None,
    ) -> None:
        super().__init__()
        check_map_options(classes, decay, weighting, normalize)
        if weights not in ("cam", "gradcam"):
            raise InputError(f"weights={weights!r} is unknown: choose 'cam' or 'gradcam'.")
        if weights == "gradcam" and head is not None:
            raise InputError(f"head={head!r} has no meaning for weights='gradcam': leave it out.")
        self.classes, self.decay, self.layer, self.head = classes, decay, layer, head
        self.weights, self.weighting, self.normalize = weights, weighting, normalize
        # in tuples, where Module does not look for submodules: the net belongs to the user
        self._given = () if model is None else (_checked(model),)
        self._bound: tuple[nn.Module, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether there is a net to take the maps from."""
        return bool(self._given or self._bound)

    def bind(self, model: nn.Module) -> None:
        """Take the maps from ``model`` unless a net was given to the constructor.

        Args:
            model: as for the constructor; the last one that was bound counts.

        Raises:
            InputError: if it is no module.
        """
        self._bound = (_checked(model),)

    def forward(self, image: Tensor, *, classes: int | None = None) -> Tensor:
        """Return the maps.

        Raises:
            InputError: if there is no net, the images are not floats in [0, 1] of shape (B, C, H, W), or no map of
                features or head is found in the net.
        """
        count = self.classes if classes is None else classes
        check_map_options(count, self.decay, self.weighting, self.normalize)
        check_unit_batch(image, "activation maps", "Let the net normalize inside, and give it [0, 1] images.")
        net = next(iter(self._given or self._bound), None)
        if net is None:
            raise InputError(
                "RobustActivationMap has no net: give one, RobustActivationMap(model), or let bind(model) set it."
            )
        like = next((value for value in net.parameters() if value.is_floating_point()), image)
        found = self._by_gradient if self.weights == "gradcam" else self._by_head
        # here, not around the run alone: the gradient too would be taken in half precision
        with torch.autocast(like.device.type, enabled=False):
            kept, where = _different(image.detach())
            return found(net, kept.to(like), count).to(image.device)[where]

    @torch.no_grad()
    def _by_head(self, net: nn.Module, image: Tensor, classes: int) -> Tensor:
        seen = observe(net, image, layer=self.layer, head=self.head)
        weights = class_weights(seen, is_named=self.layer is not None or self.head is not None)
        features = spatial_features(seen, is_named=True)
        return self._mix(features, weights, seen.logits, image, classes)

    def _by_gradient(self, net: nn.Module, image: Tensor, classes: int) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            # a clone made here is no inference tensor; it asks for a gradient since the net's parameters may not
            seen = observe(net, image.clone().requires_grad_(), layer=self.layer, head=None)
            features = spatial_features(seen, is_named=self.layer is not None)
            count = min(classes, seen.logits.shape[1])
            scores = seen.logits.topk(count, dim=1).values.sum(0)
            slopes = [torch.autograd.grad(score, features, retain_graph=True, allow_unused=True)[0] for score in scores]
        if any(slope is None for slope in slopes):
            raise InputError("The logits do not depend on the map of features that was found: name one by layer='...'.")
        weights = torch.stack([slope.mean((2, 3)) for slope in slopes], dim=1)
        return self._mix(features.detach(), weights, seen.logits.detach(), image, classes)

    def _mix(self, features: Tensor, weights: Tensor, logits: Tensor, image: Tensor, classes: int) -> Tensor:
        return robust_activation_map(
            features,
            weights,
            logits,
            classes=classes,
            decay=self.decay,
            weighting=self.weighting,
            normalize=self.normalize,
            size=(image.shape[2], image.shape[3]),
        )


def _different(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different images of a batch in their order, and where each image of the batch is among them."""
    position = torch.arange(len(image), device=image.device)
    # some rows are enough to tell most batches apart, in a tenth of the time
    for part in (image[..., ::_TELLING_ROWS, :], image):
        keys, group = torch.unique(streams.of_content(part), return_inverse=True)
        if len(keys) == len(image):
            return image, position
    first = position.new_full((len(keys),), len(image)).scatter_reduce(0, group, position, "amin")[group]
    # different images may share a key, and must not share a map
    later = position[first != position]
    same = (image[later] == image[first[later]]).flatten(1).all(1)
    own = position.index_put((later[same],), first[later[same]])
    kept, where = torch.unique(own, return_inverse=True)
    return image[kept], where


def _checked(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}: give a torch.nn.Module from [0, 1] images to logits.")
    return model

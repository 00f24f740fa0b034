"""Whole convolutional networks as cases: shape (N, H), square images of three channels.

They are written here, as their papers have them, since torchvision and timm load beside some
versions of PyTorch alone. Weights are random.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from .conv import LAYOUTS as CONV_LAYOUTS


def conv_norm(channels, out, kernel=3, stride=1, groups=1, activation=None):
    """A convolution without bias, its norm, and an activation."""
    layers = [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Classifier(nn.Module):
    """Features, their mean over all pixels, and a linear layer."""

    def __init__(self, features, channels, classes=1000):
        super().__init__()
        self.features, self.classifier = features, nn.Linear(channels, classes)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


# ---- ResNet (arXiv:1512.03385) -----------------------------------------------------------------


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width, stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels, width, stride):
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, out, stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


def shortcut(channels, out, stride):
    return None if channels == out and stride == 1 else conv_norm(channels, out, 1, stride)


def resnet(block, depths):
    layers = [conv_norm(3, 64, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for i in range(depth):
            width = 64 << stage
            layers.append(block(channels, width, 2 if stage and i == 0 else 1))
            channels = width * block.expansion
    return Classifier(nn.Sequential(*layers), channels)


# ---- VGG-16 (arXiv:1409.1556), RepVGG-A0 after training (arXiv:2101.03697) ---------------------


def vgg16():
    layers, channels = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return Classifier(nn.Sequential(*layers), channels)


def repvgg_a0():
    layers, channels = [], 3
    for width, depth in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for i in range(depth):
            layers += [nn.Conv2d(channels, width, 3, 1 if i else 2, 1), nn.ReLU(inplace=True)]
            channels = width
    return Classifier(nn.Sequential(*layers), channels)


# ---- MobileNetV2, V3-small (arXiv:1801.04381, 1905.02244), EfficientNet-Lite0 ------------------


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = self.relu(self.fc1(scale))
        return x * self.gate(self.fc2(scale))


class InvertedResidual(nn.Module):
    def __init__(self, channels, expanded, out, kernel, stride, activation, squeezes=False):
        super().__init__()
        layers = []
        if expanded != channels:
            layers.append(conv_norm(channels, expanded, 1, activation=activation))
        layers.append(conv_norm(expanded, expanded, kernel, stride, expanded, activation))
        if squeezes:
            layers.append(SqueezeExcitation(expanded, max(8, expanded // 32 * 8)))
        self.block = nn.Sequential(*layers, conv_norm(expanded, out, 1))
        self.adds = stride == 1 and channels == out

    def forward(self, x):
        return x + self.block(x) if self.adds else self.block(x)


def by_stages(stages, first, last):
    """(expansion, channels, blocks, kernel, stride) for each stage, ReLU6 throughout."""
    layers, channels = [conv_norm(3, first, 3, 2, activation=nn.ReLU6)], first
    for expansion, out, depth, kernel, stride in stages:
        for i in range(depth):
            layers.append(
                InvertedResidual(
                    channels, expansion * channels, out, kernel, 1 if i else stride, nn.ReLU6
                )
            )
            channels = out
    layers.append(conv_norm(channels, last, 1, activation=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), last)


MOBILENET_V2 = (
    (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 32, 3, 3, 2), (6, 64, 4, 3, 2), (6, 96, 3, 3, 1),
    (6, 160, 3, 3, 2), (6, 320, 1, 3, 1),
)  # fmt: skip
EFFICIENTNET_LITE0 = (
    (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2), (6, 320, 1, 3, 1),
)  # fmt: skip
# (channels, expanded, out, kernel, stride, activation, squeezes) of each block
MOBILENET_V3_SMALL = (
    (16, 16, 16, 3, 2, nn.ReLU, True), (16, 72, 24, 3, 2, nn.ReLU), (24, 88, 24, 3, 1, nn.ReLU),
    (24, 96, 40, 5, 2, nn.Hardswish, True), (40, 240, 40, 5, 1, nn.Hardswish, True),
    (40, 240, 40, 5, 1, nn.Hardswish, True), (40, 120, 48, 5, 1, nn.Hardswish, True),
    (48, 144, 48, 5, 1, nn.Hardswish, True), (48, 288, 96, 5, 2, nn.Hardswish, True),
    (96, 576, 96, 5, 1, nn.Hardswish, True), (96, 576, 96, 5, 1, nn.Hardswish, True),
)  # fmt: skip


def mobilenet_v3_small():
    blocks = [InvertedResidual(*row) for row in MOBILENET_V3_SMALL]
    first = conv_norm(3, 16, 3, 2, activation=nn.Hardswish)
    last = conv_norm(96, 576, 1, activation=nn.Hardswish)
    return Classifier(nn.Sequential(first, *blocks, last), 576)


# ---- U-Net (arXiv:1505.04597), padded ----------------------------------------------------------


class UNet(nn.Module):
    def __init__(self, widths=(32, 64, 128, 256)):
        super().__init__()

        def twice(channels, out):
            return nn.Sequential(
                nn.Conv2d(channels, out, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(out, out, 3, padding=1),
                nn.ReLU(inplace=True),
            )

        self.down = nn.ModuleList(map(twice, (3, *widths[:-1]), widths))
        wider, narrower = widths[:0:-1], widths[-2::-1]
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) for a, b in zip(wider, narrower, strict=True)
        )
        self.up = nn.ModuleList(twice(2 * b, b) for b in narrower)
        self.last = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x):
        kept = []
        for i, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for grow, layer, before in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = layer(torch.cat([grow(x), before], 1))
        return self.last(x)


# ---- cases -------------------------------------------------------------------------------------

MODELS = {
    "resnet18": lambda: resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": lambda: resnet(Bottleneck, (3, 4, 6, 3)),
    "vgg16": vgg16,
    "repvgg_a0": repvgg_a0,
    "mobilenet_v2": lambda: by_stages(MOBILENET_V2, 32, 1280),
    "mobilenet_v3_small": mobilenet_v3_small,
    "efficientnet_lite0": lambda: by_stages(EFFICIENTNET_LITE0, 32, 1280),
    "unet": UNet,
}
# The operations, and how images and weights lie.
LAYOUTS = {
    name + suffix.removeprefix("conv"): layout
    for name in MODELS
    for suffix, layout in CONV_LAYOUTS.items()
}


def model_of(case):
    return MODELS[case.operation.removesuffix("_channels_last")]


def module(case, nn):
    return model_of(case)().to(memory_format=LAYOUTS[case.operation])


def tensors(case, normal):
    images, size = case.shape
    found = {
        "x": normal(images, 3, size, size).contiguous(memory_format=LAYOUTS[case.operation]),
    }
    with torch.device("meta"):
        model = model_of(case)()
    for name, parameter in model.named_parameters():
        value = normal(*parameter.shape)
        if parameter.dim() > 1:
            value *= math.sqrt(2 / parameter[0].numel())
        else:
            value = 0.1 * value + name.endswith("weight")  # of a norm
        found[name] = value
    return found


def flops(case):
    return flops_of(case.operation.removesuffix("_channels_last"), *case.shape)


@functools.cache
def flops_of(name, images, size):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MODELS[name]().eval()(torch.empty(images, 3, size, size))
    return counter.get_total_flops()


def operand(case):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_of(case)().parameters())

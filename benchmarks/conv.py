"""Convolutions of images as cases: shape (N, C, H, K, kernel, stride, groups), square images and
kernels, padded by half a kernel."""

import math

import torch

# The operations, and how images and weights lie.
LAYOUTS = {
    "conv": torch.contiguous_format,
    "conv_channels_last": torch.channels_last,
}


def tensors(case, normal):
    images, channels, size, out_channels, kernel, _, groups = case.shape
    depth = channels // groups * kernel * kernel
    layout = LAYOUTS[case.operation]
    return {
        "x": normal(images, channels, size, size).contiguous(memory_format=layout),
        "weight": (
            normal(out_channels, channels // groups, kernel, kernel) / math.sqrt(depth)
        ).contiguous(memory_format=layout),
        "bias": normal(out_channels),
    }


def layer(case, kind, **more):
    _, channels, _, out_channels, kernel, stride, groups = case.shape
    made = kind(channels, out_channels, kernel, stride, kernel // 2, groups=groups, **more)
    return made.to(memory_format=LAYOUTS[case.operation])


def arguments(case):
    """Of conv2d, after the tensors."""
    *_, kernel, stride, groups = case.shape
    return f"{stride}, {kernel // 2}, 1, {groups}"


def flops(case):
    images, channels, size, out_channels, kernel, stride, groups = case.shape
    pixels = ((size + 2 * (kernel // 2) - kernel) // stride + 1) ** 2
    return 2 * images * pixels * out_channels * channels // groups * kernel * kernel


def operand(case):
    images, channels, size, out_channels, kernel, _, groups = case.shape
    return max(images * channels * size * size, out_channels * channels // groups * kernel * kernel)

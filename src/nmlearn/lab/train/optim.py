"""Optimizers and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from nmlearn.lab.train.config import OptimConfig


def build(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over a model's trainable parameters; no decay of vectors (norms, biases) unless configured."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    decay = config.weight_decay
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": decay if config.decay_norms_and_biases else 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of a step (the first is 0): a linear warm-up to the peak, then the schedule."""
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))

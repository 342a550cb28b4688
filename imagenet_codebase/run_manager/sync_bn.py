"""Batch normalization over the batches of all processes, as if they were one."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from elastic_nn.modules import ElasticBatchNorm2d
from imagenet_codebase.run_manager import distributed

REDUCED = (0, 2, 3)


class SyncedBatchNorm2d(ElasticBatchNorm2d):
    """Batch norm whose training statistics are of all processes' images (torch's needs CUDA)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        mean, var, n = _statistics(x.detach())
        c = x.size(1)
        with torch.no_grad():
            self.running_mean[:c].lerp_(mean, self.momentum)
            self.running_var[:c].lerp_(var * n / (n - 1), self.momentum)
        return _Normalize.apply(x, self.weight[:c], self.bias[:c], mean, var, self.eps)


def synchronize(net: nn.Module) -> None:
    """Let every batch norm of a network use the batches of all processes; its tensors stay."""
    for parent in list(net.modules()):
        for name, norm in parent.named_children():
            if type(norm) is ElasticBatchNorm2d:
                synced = SyncedBatchNorm2d(norm.num_features)
                synced._parameters, synced._buffers = norm._parameters, norm._buffers
                synced.train(norm.training)
                setattr(parent, name, synced)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean (C,), biased variance (C,) and number of values over all processes, float32."""
    var, mean = torch.var_mean(x.float(), REDUCED, correction=0)
    # In double precision: the variance is a difference of large sums.
    var, mean = var.double(), mean.double()
    count = torch.full_like(mean[:1], x.numel() / x.size(1))
    sums = distributed.total(torch.cat([count, count * mean, count * (var + mean**2)]))
    n, (first, second) = sums[:1], (sums[1:] / sums[:1]).chunk(2)
    return first.float(), (second - first**2).clamp_(min=0).float(), n.float()


class _Normalize(torch.autograd.Function):
    """Gradients through statistics that depend on the other processes' images too."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, scale = ctx.saved_tensors
        column = (1, -1, 1, 1)
        normal = (x.float() - mean.view(column)) * scale.view(column)
        dtype, grad = grad.dtype, grad.float()
        sums = torch.stack([grad.sum(REDUCED), (grad * normal).sum(REDUCED)])
        n = x.numel() / x.size(1) * (dist.get_world_size() if dist.is_initialized() else 1)
        of_all = distributed.total(sums) / n
        centred = grad - of_all[0].view(column) - normal * of_all[1].view(column)
        grad_x = (centred * (weight * scale).view(column)).to(dtype)
        return grad_x, sums[1], sums[0], None, None, None

"""The once-for-all supernet and the compact networks cut out of it."""

from elastic_nn.networks.mobile_net import MobileNet
from elastic_nn.networks.ofa import OnceForAllNet

__all__ = ["MobileNet", "OnceForAllNet"]

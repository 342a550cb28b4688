"""The supernet: elastic and quantized layers, the networks made of them, and their training."""

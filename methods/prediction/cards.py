"""Names under which the cards of pairs and predictors hold what is known of them.

Apart from those who write them, so that commands can read a card without torch.
"""

from __future__ import annotations

# ---- pairs ----

KINDS = {"full": "in full precision", "quantized": "quantized"}
"""Kinds of subnets as cards name them, and as messages do."""
NOISE = "noise_points"
"""For each of `KINDS`, how far measurements stray that take other batch statistics and run all of
the split's images. (In older files: that take other images of the split.)"""
SAMPLING_NOISE = "sampling_noise_points"
"""How far those on all of the split (a draw of it, where it is large) stray from those on all
images like them."""
N_NOISE = "n_noise"
"""How many subnets of each kind tell the noise."""
LAST_ROUND = "last_round"
"""How right the predictor was about what it found last, before it learned from that: an estimate
for the next search."""

# ---- predictors ----

# The names of the kinds, under which `figures` holds how right each of them is.
FULL, SCRATCH = "full precision", "quantized, from scratch"
TRANSFER, SEARCHED = "quantized, by transfer", "quantized, with searched pairs"
ABOUT_SEARCHED = "searched"
"""Among the figures: how right predictors are about searched subnets, `LAST_ROUND` included."""

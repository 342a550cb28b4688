"""The quantizers there are, and what each asks of the accelerator."""

from __future__ import annotations

from dataclasses import dataclass

from apq.checks import check_choice


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How ranges are found and learned; the rounding is the same for all."""

    name: str
    learned: bool
    """Ranges of weights too are trained, with the gradient of learned step size quantization."""
    per_channel: bool
    """One weight range for each output channel instead of one for each layer."""
    full: bool = False
    """Values with signs take all of 2^b levels, -2^(b-1) too, and what passes between blocks starts
    centred on them."""
    needs: str
    """What the accelerator has to do for it, as runs tell."""


_ONE_FACTOR = "one factor for each output channel, which folded batch norm needs in any case"
_ONE_STEP = "one multiplication of each accumulated sum, by the layer's two steps"
QUANTIZERS = {
    q.name: q
    for q in (
        Quantizer(
            name="paper",
            learned=False,
            per_channel=False,
            needs=_ONE_STEP,
        ),
        Quantizer(
            name="lsq",
            learned=True,
            per_channel=False,
            needs=_ONE_STEP,
        ),
        Quantizer(
            name="lsq-channel",
            learned=True,
            per_channel=True,
            needs=_ONE_FACTOR,
        ),
        Quantizer(
            name="lsq-full",
            learned=True,
            per_channel=True,
            full=True,
            needs=f"{_ONE_FACTOR}, and two's complement with its lowest value",
        ),
    )
}
PAPER = QUANTIZERS["paper"]


def find_quantizer(name: str) -> Quantizer:
    """Return a quantizer by name; raises ApqError when there is none."""
    check_choice("quantizer", name, QUANTIZERS)
    return QUANTIZERS[name]

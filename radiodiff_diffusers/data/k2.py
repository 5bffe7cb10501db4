"""The Helmholtz feature k² of RadioDiff-k²: where a radio map bends as no free wave would.

    from radiodiff_diffusers.data.k2 import k2_feature
    scene = scene.replace(k2=k2_feature(radio_map, scene.transmitter))

With the received power u (watts for 23 dBm sent) and the five-point Laplacian, k² = -(∇²u + δ u) / u with δ = 1 at the
transmitter; the feature is its negative part min(-k², 0), stretched to 0..1 for each map, and 1 on the outermost
pixels.

**A feature made from the map that is to be predicted gives the answer away.** The released code of RadioDiff-k²
conditions on such features; figures got that way say nothing about prediction. Make it from something known before the
measurement: a physics engine's map (`radiodiff_diffusers.engines.dominant_path(scene)`) or another model's prediction.
"""

from __future__ import annotations

import numpy as np

from ..scene import RadioMap

# RadioDiff-k² reads gray 0..255 as -147 .. -47 dB (a span of 100, where RadioMapSeer's own scale has 99.16) and sends
# 23 dBm.
_FLOOR_DB, _SPAN_DB, _SENT_DBM = -147.0, 100.0, 23.0
METHODS = ("power", "amplitude")


def k2_feature(
    radio_map: RadioMap, transmitter: tuple[float, float] | None = None, method: str = "power"
) -> np.ndarray:
    """The k² feature of a radio map, (H, W) float32 in 0..1, for `Scene.k2`.

    Args:
        radio_map: where the field comes from; see the warning at the top of this page.
        transmitter: `(x, y)`; its pixel gets the source term. `None` leaves that out.
        method: `"power"` is RadioDiff-k²'s own, to 8 bits as in its files. `"amplitude"` is RadioHRFormer's steadier
            variant: the map is smoothed a little, u is the field's amplitude, and bright means strong bending (1 minus
                the feature).
    """
    if method not in METHODS:
        raise ValueError(f"unknown k2 method {method!r}: use one of {', '.join(METHODS)}")
    gray = radio_map.gray.astype(np.float64) / 255.0
    height, width = gray.shape
    if min(height, width) < 3:
        raise ValueError(f"k2 needs a map of at least 3 x 3 pixels; got {width} x {height}")
    if method == "amplitude":
        from scipy.ndimage import gaussian_filter

        gray = gaussian_filter(gray, sigma=0.9)
    received_db = _SENT_DBM - 30.0 + _FLOOR_DB + _SPAN_DB * gray
    u = 10.0 ** (received_db / (10.0 if method == "power" else 20.0))

    centre = u[1:-1, 1:-1]
    bend = u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4.0 * centre
    if transmitter is not None:
        column, row = (int(np.floor(v + 0.5)) for v in transmitter)
        if 0 < row < height - 1 and 0 < column < width - 1:
            bend[row - 1, column - 1] += centre[row - 1, column - 1]
    negative = np.minimum(bend / centre, 0.0)
    low, high = negative.min(), negative.max()
    stretched = (negative - low) / (high - low) if high > low else np.ones_like(negative)
    if method == "power":
        stretched = np.floor(stretched * 255.0) / 255.0
    feature = np.pad(stretched, 1, constant_values=1.0).astype(np.float32)
    return feature if method == "power" else 1.0 - feature

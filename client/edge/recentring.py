"""Whether the mean of a few normal records may stand for a device.

Re-centring moves the middle of the latent space to the mean of a device's own normals and measures
distances in the spread within clients. It helps where a device differs from the clients of the
federation, and harms where that mean is off: of few records, of records that scatter, or of a
series that drifts. All three show beside how far the mean lies from the released one, in the
released spread within clients. Only numpy and the standard library are imported.
"""

import numpy as np

LEAST = 5  # records
#: A mean of n records may lie this over n from the released one by chance: neighbours in a series
#: are alike, so that ten of them count as few.
CHANCE = 5.0
MOST_DRIFT = 0.1  # of the mean between the halves of the records, beside its own distance
MOST_SPREAD = 3.0  # of the records about their mean, beside its own distance


def doubt(latents: np.ndarray, center: np.ndarray, within: np.ndarray) -> str | None:
    """Why re-centring on normal records should not be trusted; None where it may be.

    Args:
        latents: means [n, k] of a device's own normal records, in the order of time.
        center: released mean [k] of all clients.
        within: released covariance [k, k] about a client's own mean.

    Returns:
        A clause for people.
    """
    count, k = latents.shape
    if count < LEAST:
        return f"fewer than {LEAST} records say little of their mean"
    factor = np.linalg.cholesky(np.linalg.inv(within))

    def size(offsets: np.ndarray) -> float:
        """Mean squared length in the spread within clients; 1 is that of a client's records."""
        return float(np.square(offsets @ factor).sum() / k)

    mean, half = latents.mean(axis=0), count // 2
    away = size(mean - center)
    apart = size(latents[:half].mean(axis=0) - latents[half:].mean(axis=0)) / 4.0
    spread = size(latents - mean) / (count - 1)
    if away < CHANCE / count:
        return (
            f"the mean of {count} records lies no further from that of all clients than by chance"
        )
    if spread > MOST_SPREAD * away:
        return "they scatter wider than their mean lies from that of all clients"
    if apart - spread / count > MOST_DRIFT * away:  # beyond what the scatter alone would do
        return "their first half lies elsewhere than their second"
    return None

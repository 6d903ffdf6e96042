"""From exported graphs to a finished bundle, in one call."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedlatent.shared.bundle.archive import (
    CARD,
    DECODER,
    DENSITY,
    GOLDEN,
    scorer_name,
    write_bundle,
)
from fedlatent.shared.bundle.arrays import pack_arrays
from fedlatent.shared.bundle.card import model_card
from fedlatent.shared.bundle.graphs import make_golden
from fedlatent.shared.bundle.manifest import Manifest
from fedlatent.shared.keys import SigningKey


def build_bundle(
    path: Path,
    manifest: Manifest,
    *,
    scorer: bytes,
    density: Mapping[str, np.ndarray],
    golden_records: np.ndarray,
    signing_key: SigningKey,
    decoder: bytes | None = None,
    note: str = "",
) -> Manifest:
    """Make golden vectors and the model card, sign, and write the bundle.

    Args:
        path: target file.
        manifest: with empty ``files``.
        scorer: ONNX graph from x and center to mu, logvar and the outputs of ``manifest.score``,
            in the format of ``manifest.runtime``.
        density: `LatentDensity.arrays`; ``mean`` is the center that devices start from, so for a
            site bundle put the site's own mean there.
        golden_records: raw records [B, *shape] that may be published: synthetic ones for a global
            bundle, never private ones.
        signing_key: of the publisher.
        decoder: ONNX graph of a site's decoder, or of one that was released.
        note: more text for the model card.

    Returns:
        The manifest as written.

    Raises:
        BundleError: graphs, density and manifest do not fit together, or a file is too large.
        DataError: the golden records do not fit the schema.
    """
    files = {
        scorer_name(manifest): scorer,
        DENSITY: pack_arrays(density),
        CARD: model_card(manifest, note).encode(),
    }
    if decoder is not None:
        files[DECODER] = decoder
    files[GOLDEN] = make_golden(manifest, files, golden_records)
    return write_bundle(path, manifest, files, signing_key)

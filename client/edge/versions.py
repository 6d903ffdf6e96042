"""Which software this device has: it judges bundles, and otherwise once it is upgraded."""

import contextlib
import functools

DISTRIBUTIONS = ("fedlatent", "fedlatent-edge")


@functools.cache
def program() -> str | None:
    """Name and version of this program, or None when it runs from a checkout."""
    from importlib import metadata  # takes memory and time

    found = None
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = f"{name} {metadata.version(name)}"
    return found


def software() -> str:
    """This program, the bundles that it reads, and its ONNX Runtime."""
    import onnxruntime

    from fedlatent.shared.bundle.manifest import FORMAT_VERSION

    known = program() or "fedlatent"
    return f"{known} (bundle format {FORMAT_VERSION}) with ONNX Runtime {onnxruntime.__version__}"

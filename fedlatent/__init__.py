"""Federated and on-device learning of variational autoencoders under differential privacy.

The folders `client`, `server`, `shared` and `simulations` of the checkout are the packages of the
same names in here; `fedlatent.cli` is the command line.
"""

import fedlatent.shared  # noqa: F401 - keeps quiet what would phone home, whatever is imported

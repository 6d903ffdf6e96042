"""What both sides of a federation must agree on; imports nothing of the other packages."""

from fedlatent.shared.quiet import keep_quiet

keep_quiet()

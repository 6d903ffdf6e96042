"""How large a delta may be."""


def largest_delta(records: int) -> float:
    """The largest delta that promises something to each of N records of a node: 1 / (10 N).

    To publish one record of N as it is would be private at a delta of 1/N; this is ten times less.
    """
    return 1.0 / (10.0 * max(records, 1))

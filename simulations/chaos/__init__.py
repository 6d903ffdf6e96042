"""Faults by the hundred on a real deployment, and whether anything was lost.

A server, three honest nodes and a hostile one run as processes of this machine, each node behind a
line of its own. Faults are drawn from a seed and struck while runs go on; afterwards the files
alone are asked, by code that shares nothing with the code that wrote them, whether each run came
to its end, every charge is there, and no phase was done twice.
"""

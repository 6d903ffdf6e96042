"""The run file that ``server init`` writes."""

RUN_EXAMPLE = """\
# A run: what is trained, and at what privacy. See docs/guide.md.
name = "hearts"

[data]                      # every node's records must fit this
name = "heart-beat-128"
shape = [128]
unit = "mV"
scale = 1.0                 # raw value * scale
center = "median"           # of each record by itself
lower = -2.5                # public bounds, never taken from data
upper = 2.5

[model]
family = "gaussian"

[model.options]
hidden = [64]
latent_dim = 8

[privacy]
epsilon = 4.0               # of the whole run, for each client by itself
delta = 1e-5
sample_rate = 0.1

[training]
rounds = 10
steps_per_round = 20

[strategy]
weighting = "records"       # or "uniform", "noise-aware"
# robust = "trimmed-mean"   # or "median", "centred-clipping", "krum", "multi-krum", "none"

[federation]
nodes = 2                   # the first round waits for so many
quorum = 2                  # least number of good replies
"""

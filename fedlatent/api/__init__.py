"""The Python side of `fedlatent`: each command that makes sense in a script is a call here.

`fedlatent` itself exports these names; import them from there.
"""

"""Today's behaviour in numbers: what a change of structure has to leave as it is.

``FEDLATENT_WRITE_GOLDEN=1 pytest tests/golden`` writes the files anew; their diff is the review.
"""

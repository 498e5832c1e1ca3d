"""Your own pictures, from a folder to a decision: what `python -m imbook try` and `python -m imbook report` do.

`look` finds and examines the files, `split` divides them without leakage, `trial` plans and trains, `judge` chooses on
validation data and measures on test data, `figures` and `report` show it. Chapter 09 goes through it step by step.
"""

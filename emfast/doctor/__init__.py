"""What this machine has and what would run on it, found by trying.

facts.py      everything that is found out, as dataclasses
trial.py      one engine opened, timed and compared, in a process of its own
self_test.py  every engine that can run here, tried
table.py      the facts for people
"""

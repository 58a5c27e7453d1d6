"""Commands: what people and programs type after ``agentfield``, one file a group.

Owns: their options, what each does with what it is given, and what it prints. Must not know: how a command is found,
and how one ends. Invariant: nothing outside imports from here, but ``root``, which loads a command when it is run.
"""

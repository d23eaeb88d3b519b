"""Grading submitted notebooks: a student's code runs in a process of its own, the checks in the instructor's."""

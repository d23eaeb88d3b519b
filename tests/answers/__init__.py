"""Answers to the exercises of each lesson, to try the graders on: ``RIGHT`` and ``WRONG``, by exercise."""

"""Submissions as students hand them in, each with what it must get: right, wrong, broken and hostile ones."""

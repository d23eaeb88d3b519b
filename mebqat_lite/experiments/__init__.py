"""Many trainings side by side: set-ups, jobs, where they run, and what comes of them."""

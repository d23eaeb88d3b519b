"""Run many trainings side by side: their set-ups, their jobs, the engines that run these, and the results."""

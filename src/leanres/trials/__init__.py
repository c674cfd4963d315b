"""Many trainings: jobs, executors, campaigns, comparisons, architecture search, races."""

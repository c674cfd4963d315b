"""Many trainings: jobs, plans, comparisons, architecture search, races."""

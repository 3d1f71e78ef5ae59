"""What a graph and a table say before anything is generated: confounding, identification, tests, the plan's effect."""

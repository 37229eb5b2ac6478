"""From tasks to trajectories: an engine, an environment and the rules in between."""

"""The evaluators of the family, each trained on renders whose truth is known."""

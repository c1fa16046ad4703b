"""How the tiny family is made: one resumable loop, and a module for each part of the family."""

"""Methods, settings, concepts and seeds measured against each other: what is to be measured, one cell, the table."""

"""Files of other programs: what they hold as trees of arrays, and back."""

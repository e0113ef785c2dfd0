"""Names that several toolkits share. Some differ by one letter, so that a name has to be read to its end."""

import string

LETTERS = tuple(string.ascii_lowercase[:12])  # of the smallest tasks; as many as `envs.tools.lookup` has
PEOPLE = (
    *("ana", "anna", "anne", "ben", "beth", "carl", "carla", "cleo", "clea", "dana", "dmitri", "ed", "eda", "eva"),
    *("evan", "farid", "farida", "gita", "greta", "hugo", "ines", "ina", "jan", "jana", "jun", "june", "kofi", "lara"),
    *("lars", "mara", "mark", "nina", "nino", "olaf", "olga", "pia", "rosa", "ross", "tara", "theo", "uma", "zoe"),
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
